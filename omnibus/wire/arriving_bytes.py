"""Bytes that arrive in pieces."""

from __future__ import annotations

import io

from omnibus.wire.codec import Buffer
from omnibus.wire.lazy_numpy import np


class ArrivingBytes:
    """Puts pieces together in one buffer of their size, so that they are never in memory twice; `add` may be a thread's."""

    def __init__(self, nbytes: int, into: memoryview | None = None) -> None:
        """`into`: the buffer, of that size; raises ValueError for one of another."""
        self._whole = (
            io.BytesIO(bytes(nbytes)) if into is None else None
        )  # which neither copies nor touches these pages
        self._into = into if self._whole is None else self._whole.getbuffer()
        assert self._into is not None
        if len(self._into) != nbytes:
            raise ValueError(f"{nbytes} bytes do not fit into a buffer of {len(self._into)}")
        self.nbytes = 0
        """Bytes that are there."""

    def add(self, piece: Buffer) -> None:
        """Copy the next piece; raises ValueError when that is more than there should be."""
        assert self._into is not None
        target = np.frombuffer(self._into, dtype=np.uint8)[self.nbytes : self.nbytes + len(piece)]
        np.copyto(target, np.frombuffer(piece, dtype=np.uint8))  # lets other threads run
        self.nbytes += len(piece)

    def whole(self) -> bytes | memoryview:
        """The buffer, once; raises ValueError when pieces are missing."""
        assert self._into is not None
        if self.nbytes != len(self._into):
            raise ValueError(f"{self.nbytes} of {len(self._into)} bytes came")
        if self._whole is None:
            return self._into
        self._into.release()  # what is viewed would be copied
        return self._whole.getvalue()
