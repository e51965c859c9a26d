"""Bytes on the wire: MessagePack, twice.

Typed envelopes are msgspec structs (`encode`, `decode`). Untyped values inside them, such as a tensor or whatever a Python
stage returned, are packed apart with the `msgpack` package (`pack`, `unpack`), whose extension type 1 is a numpy array:
a MessagePack array `[dtype, shape]` followed by the raw buffer in C order, little endian. Any MessagePack library reads both.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import msgpack
import msgspec
import numpy as np

from omnibus.errors import InvalidRequest

NUMPY_EXT = 1
"""Extension type of a numpy array."""

T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()


def encode(envelope: msgspec.Struct) -> bytes:
    """Encode a typed envelope."""
    return _encoder.encode(envelope)


def decode(data: bytes, kind: type[T] | Any) -> T:
    """Decode a typed envelope; raises InvalidRequest when the bytes are not one."""
    try:
        return _decoder(kind).decode(data)  # type: ignore[no-any-return, arg-type]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"malformed envelope: {error}") from error


@cache  # a union of structs is read anew by each decoder, at four times the cost of decoding one
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


def pack(value: object) -> bytes:
    """Pack an untyped value: None, bool, int, float, str, bytes, list, dict and numpy arrays, nested at will."""
    return msgpack.packb(value, default=_pack_numpy, use_bin_type=True)  # type: ignore[no-any-return]


def unpack(data: bytes) -> Any:
    """Unpack what `pack` made. Arrays are read-only views of `data`."""
    try:
        return msgpack.unpackb(data, ext_hook=_unpack_numpy, raw=False, strict_map_key=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise InvalidRequest(f"malformed value: {error}") from error


def _pack_numpy(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"cannot send a {type(value).__name__} between stages; send numbers, strings, bytes or arrays")
    if value.dtype.hasobject:
        raise TypeError("cannot send an array of Python objects between stages")
    array = np.asarray(value, dtype=value.dtype.newbyteorder("<"), order="C")
    head: bytes = msgpack.packb([array.dtype.str, list(array.shape)])
    return msgpack.ExtType(NUMPY_EXT, head + array.tobytes())


def _unpack_numpy(code: int, data: bytes) -> object:
    if code != NUMPY_EXT:
        return msgpack.ExtType(code, data)
    unpacker = msgpack.Unpacker(max_buffer_size=len(data))
    unpacker.feed(data)
    dtype, shape = unpacker.unpack()
    return np.frombuffer(data, dtype=np.dtype(dtype), offset=unpacker.tell()).reshape(shape)
