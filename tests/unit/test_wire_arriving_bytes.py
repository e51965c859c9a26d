"""Bytes that arrive in pieces: together in one buffer, and never in memory twice."""

from __future__ import annotations

import tracemalloc

import pytest

from omnibus.wire.arriving_bytes import ArrivingBytes

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("pieces", [(), (b"",), (b"abc",), (b"a", b"", b"bcd"), (memoryview(b"ab"), bytearray(b"c"))])
def test_pieces_are_put_together_in_order(pieces: tuple[bytes, ...]) -> None:
    expected = b"".join(pieces)
    for into in (None, memoryview(bytearray(len(expected)))):
        arriving = ArrivingBytes(len(expected), into)
        for piece in pieces:
            arriving.add(piece)
        whole = arriving.whole()
        assert whole == expected
        assert (type(whole) is bytes) if into is None else (whole is into)


@pytest.mark.parametrize("pieces", [(b"ab",), (b"abcd",), (b"abc", b"d"), (b"abc", b"de"), ()])
def test_other_numbers_of_bytes_are_refused(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match=r"bytes|broadcast"):
        together(3, pieces)
    with pytest.raises(ValueError, match="do not fit"):
        ArrivingBytes(3, memoryview(bytearray(4)))


def together(nbytes: int, pieces: tuple[bytes, ...]) -> bytes | memoryview:
    arriving = ArrivingBytes(nbytes)
    for piece in pieces:
        arriving.add(piece)
    return arriving.whole()


def test_memory_holds_the_bytes_once() -> None:
    size, piece = 32 << 20, bytes(1 << 20)
    tracemalloc.start()
    try:
        arriving = ArrivingBytes(size)
        while arriving.nbytes < size:
            arriving.add(piece)
        assert len(bytes(arriving.whole())) == size
        assert tracemalloc.get_traced_memory()[1] < size * 1.1
    finally:
        tracemalloc.stop()
