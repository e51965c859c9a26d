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

from omnibus.errors import InvalidRequest
from omnibus.wire.lazy_numpy import np

NUMPY_EXT = 1
"""Extension type of a numpy array."""

LARGE = 64 * 1024
"""Bytes from which an array or a byte string is not copied while it is packed."""
_WIDE = 1024
"""Items beyond which a list is packed as one piece."""
_LONGEST_HEAD = 4096

Buffer = bytes | bytearray | memoryview
T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_packer = msgpack.Packer()


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


def pack_parts(value: object) -> list[Buffer]:
    """Pack as `pack` does, into pieces that follow each other: large arrays and bytes are pieces of their own, uncopied."""
    parts: list[Buffer] = []
    _add_parts(value, parts)
    return parts


def unpack(data: Buffer) -> Any:
    """Unpack what `pack` made. Arrays are read-only views of `data`."""
    try:
        return msgspec.msgpack.decode(data, ext_hook=_unpack_extension)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"malformed value: {error}") from error


def _add_parts(value: object, parts: list[Buffer]) -> None:
    match value:
        case dict():
            parts.append(_packer.pack_map_header(len(value)))
            for key, item in value.items():
                parts.append(pack(key))
                _add_parts(item, parts)
        case list() | tuple() if len(value) <= _WIDE:
            parts.append(_packer.pack_array_header(len(value)))
            for item in value:
                _add_parts(item, parts)
        case bytes() if len(value) >= LARGE:
            parts += (b"\xc6" + len(value).to_bytes(4, "big"), value)
        case _ if (array := _array_of(value)) is not None and array.nbytes >= LARGE:
            head, buffer = _head_and_buffer(array)
            length = len(head) + array.nbytes
            parts += (b"\xc9" + length.to_bytes(4, "big") + bytes([NUMPY_EXT]) + head, buffer)
        case _:
            parts.append(pack(value))


def _pack_numpy(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    array = _array_of(value)
    if array is None:
        raise TypeError(f"cannot send a {type(value).__name__} between stages; send numbers, strings, bytes or arrays")
    head, buffer = _head_and_buffer(array)
    return msgpack.ExtType(NUMPY_EXT, head + bytes(buffer))


def host_array(value: object) -> np.ndarray[Any, Any]:
    """The array of anything that is one, on whatever device; raises ValueError for lists of several lengths, TypeError too."""
    array = _array_of(value)
    return np.asarray(value) if array is None else array


def _array_of(value: object) -> np.ndarray[Any, Any] | None:
    """The array itself, or a view of a tensor that speaks DLPack, as those of torch and JAX do; None for anything else."""
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "__dlpack__"):
        return None
    try:
        return np.from_dlpack(_on_host(value.detach()) if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise TypeError(
            f"cannot send this {type(value).__name__} between stages: {error}; move it to the CPU, and convert what numpy has "
            "no type for"
        ) from error


def _on_host(tensor: Any) -> Any:
    """A tensor of torch in the host's memory: itself if it is there, else a copy, of one on a GPU into pinned memory.

    A GPU copies into pinned memory several times faster, and torch keeps what it has pinned for the next one.
    """
    if not getattr(tensor, "is_cuda", False):
        return tensor.cpu()
    try:
        host = tensor.new_empty(tensor.shape, device="cpu", pin_memory=True)
    except RuntimeError:  # nothing more can be pinned
        return tensor.cpu()
    return host.copy_(tensor)  # returns when all of it is there


def _head_and_buffer(array: np.ndarray[Any, Any]) -> tuple[bytes, memoryview]:
    """The buffer is the array's own, unless its order or its byte order is another."""
    if array.dtype.hasobject:
        raise TypeError("cannot send an array of Python objects between stages")
    array = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    head: bytes = msgpack.packb([array.dtype.str, list(array.shape)])
    return head, array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def _unpack_extension(code: int, data: memoryview) -> object:
    if code != NUMPY_EXT:
        return msgpack.ExtType(code, bytes(data))
    unpacker = msgpack.Unpacker()
    unpacker.feed(data[:_LONGEST_HEAD])
    dtype, shape = unpacker.unpack()
    return np.frombuffer(data.toreadonly(), dtype=np.dtype(dtype), offset=unpacker.tell()).reshape(shape)
