"""Objects in pieces: cut for the stream, and put together again, large ones without holding up the loop."""

from __future__ import annotations

import os

import pytest

from omnibus.broker.objects import CHUNK, ObjectInfo, _Assembly, _chunks, _digest
from omnibus.errors import PayloadLost

pytestmark = pytest.mark.unit


def info(data: bytes) -> ObjectInfo:
    return ObjectInfo(name="one", size=len(data), digest=_digest([data]))


def assembled(chunks: list[bytes], stored: bytes, into: memoryview | None = None) -> bytes | memoryview:
    """What comes of an object when these are the chunks that arrive, each in a batch of its own."""
    assembly = _Assembly(info(stored), into)
    for chunk in chunks:
        assembly.add([chunk])
    return assembly.checked()


@pytest.mark.parametrize("sizes", [(), (0,), (5,), (5, CHUNK, 7), (CHUNK,), (3 * CHUNK + 1, 0, 1), (1,) * 9])
def test_chunks_are_full_but_the_last_whatever_parts_the_object_has(sizes: tuple[int, ...]) -> None:
    parts = [os.urandom(size) for size in sizes]
    chunks = list(_chunks([memoryview(part) for part in parts]))
    assert b"".join(chunks) == b"".join(parts)
    assert all(len(chunk) == CHUNK for chunk in chunks[:-1])
    assert all(chunks)


def test_object_is_the_same_in_a_given_buffer() -> None:
    data = os.urandom(300_000)
    target = bytearray(len(data))
    assert assembled([data[:100_000], data[100_000:]], data, memoryview(target)) == data
    assert target == data
    assert assembled([data], data) == data


@pytest.mark.parametrize("chunks", [[b"abc"], [b"abd", b"e"], [], [b"abcd", b"e"], [b"abcdefgh"]])
def test_object_is_lost_when_it_is_not_what_was_stored(chunks: list[bytes]) -> None:
    with pytest.raises(PayloadLost):
        assembled(chunks, b"abcd")


def test_object_is_lost_when_the_buffer_is_of_another_size() -> None:
    with pytest.raises(PayloadLost):
        assembled([b"abcd"], b"abcd", memoryview(bytearray(3)))
