"""Values as the bytes of a payload, and back: texts and bytes as they are, all else as MessagePack.

Large buffers stay where they are: `Packed` is pieces that follow each other. What may be large is packed in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from omnibus.errors import InvalidRequest
from omnibus.wire import codec
from omnibus.wire.codec import Buffer
from omnibus.wire.lazy_numpy import np
from omnibus.wire.payload import BYTES, MSGPACK, TEXT

HEAVY = 256 * 1024
"""Bytes from which a copy, a digest or unpacking is work for a thread: the loop would stand still for longer than that costs."""
_MOST_ITEMS = 512


@dataclass(frozen=True, slots=True)
class Packed:
    """The bytes of a payload, in pieces."""

    parts: tuple[Buffer, ...]
    media_type: str
    nbytes: int
    lead: int = 0
    """Bytes before the first large array, which a reader wants aligned."""
    viewed: int = 0
    """Bytes of large arrays, which unpacking does not copy."""

    @classmethod
    def of(cls, parts: Iterable[Buffer], media_type: str) -> Self:
        """Count the pieces."""
        given = tuple(parts)
        arrays = [number for number, part in enumerate(given) if isinstance(part, memoryview)]  # all else is copied
        lead = sum(map(len, given[: arrays[0]])) if arrays else 0
        viewed = sum(len(given[number]) for number in arrays)
        return cls(given, media_type, sum(map(len, given)), lead, viewed)

    @classmethod
    def whole(cls, data: bytes, media_type: str) -> Self:
        """One piece, with no array in it: nothing is to be counted."""
        return cls((data,), media_type, len(data))

    def joined(self) -> bytes:
        """All of it, copied unless it is one byte string."""
        return bytes(self.parts[0]) if len(self.parts) == 1 else b"".join(self.parts)


async def packed(value: object) -> Packed:
    """Pack a value; raises TypeError, ValueError or OverflowError for what cannot be sent."""
    return _packed(value) if _is_light(value) else await asyncio.to_thread(_packed, value)


def unpack(data: Buffer, media_type: str) -> Any:
    """A stage's output as its maker gave it: a packed value, a text, or bytes. Arrays are read-only views of `data`.

    Raises InvalidRequest for bytes that are not of that type.
    """
    if media_type == MSGPACK:
        return codec.unpack(data)
    if media_type == TEXT:
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"a text payload is not UTF-8: {error}") from error
    return bytes(data)


def _packed(value: object) -> Packed:
    if isinstance(value, bytes):
        return Packed.whole(value, BYTES)
    if isinstance(value, str):
        return Packed.whole(value.encode(), TEXT)
    return Packed.of(codec.pack_parts(value), MSGPACK)


def _is_light(value: object) -> bool:
    """Whether it is packed in no time: few items, and no more bytes than a thread would cost."""
    return sum(_weights(value, _MOST_ITEMS)) <= HEAVY


def _is_copied(value: object) -> bool:
    """Whether packing copies it: not an array whose buffer travels as it is."""
    return not (isinstance(value, np.ndarray) and value.flags.c_contiguous and value.dtype.isnative)


def _weights(value: object, most: int) -> Iterator[int]:
    """Bytes of a value and of what is in it; as much as makes it heavy when there are too many items to count."""
    waiting = [value]
    for _ in range(most):
        if not waiting:
            return
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()] if len(one) <= most else [None] * most
        elif isinstance(one, list | tuple):
            waiting += one[:most]
        elif isinstance(one, str | bytes):
            yield len(one)
        else:
            yield int(getattr(one, "nbytes", 8)) * _is_copied(one)
    if waiting:
        yield HEAVY + 1
