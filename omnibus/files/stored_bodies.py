"""Bytes of files in storage of the operator's, instead of the broker: written and read in pieces, and removed when they expire.

The name of an object begins with the time of its expiry, as storage keeps whatever nobody removes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator

from omnibus.errors import BrokerUnavailable, OmnibusError, RequestCancelled
from omnibus.payloads.operator_storage import first_line, open_storage, reading

_PIECE = 1 << 20
_PART = 8 << 20
"""Bytes of a part of an upload; S3 takes 10,000 of them."""
_PARTS_AT_ONCE = 2
"""Parts of an upload on their way. Invariant: few, as each upload holds so many in memory."""


class StoredBodies:
    """One place for bytes of files. Methods raise BrokerUnavailable where the storage does not answer."""

    def __init__(self, url: str) -> None:
        """`url`: `s3://bucket/prefix`, `gs:`, `az:` or `file:///folder`; raises ConfigError for one that cannot be used."""
        self._base, self._storage = url.rstrip("/"), open_storage(url, "OMNIBUS_FILE_STORE")

    async def store(self, name: str, pieces: AsyncIterable[bytes], *, expires: float) -> int:
        """Write bytes; returns how many. What is not written whole leaves nothing, and what `pieces` raises comes out."""
        counted = _Counted(pieces)
        putting = asyncio.ensure_future(
            self._storage.put_async(
                _place(name, expires), counted.read(), chunk_size=_PART, max_concurrency=_PARTS_AT_ONCE
            )
        )
        try:
            await asyncio.shield(putting)
        except asyncio.CancelledError:
            counted.stop()  # so that the client aborts the upload, which it would leave half done else
            await asyncio.wait([putting])
            raise
        except Exception as error:  # the client has a class of its own for each storage
            if isinstance(error, OmnibusError) or error is counted.failure:
                raise
            raise BrokerUnavailable(f"the file cannot be stored at {self._base}: {first_line(error)}") from error
        return counted.nbytes

    async def read(self, name: str, first: int, nbytes: int, *, expires: float) -> AsyncIterator[bytes]:
        """So many bytes from `first` on; raises PayloadLost when they are gone."""
        place = _place(name, expires)
        if not nbytes:
            return
        found = await reading(
            self._storage.get_async(place, options={"range": (first, first + nbytes)}), f"{self._base}/{place}"
        )
        pieces = aiter(found.stream(min_chunk_size=_PIECE))
        while (piece := await reading(anext(pieces, None), f"{self._base}/{place}")) is not None:
            yield bytes(piece)

    async def delete(self, name: str, *, expires: float) -> None:
        """Remove bytes, there or not."""
        await self._remove([_place(name, expires)])

    async def remove_expired(self, now: float) -> int:
        """Remove what has expired, also bytes without a record, which a death has left; returns how many."""
        removed = 0
        async for listed in self._storage.list(None, chunk_size=1000):
            old = [one["path"] for one in listed if (when := _expiry(one["path"])) is not None and when < now]
            await self._remove(old)
            removed += len(old)
        return removed

    async def _remove(self, places: list[str]) -> None:
        for place in places:
            try:
                await self._storage.delete_async(place)
            except FileNotFoundError:
                continue
            except Exception as error:
                raise BrokerUnavailable(f"{self._base} does not delete: {first_line(error)}") from error


class _Counted:
    """Pieces on their way, counted; `failure` is what reading them has raised."""

    def __init__(self, pieces: AsyncIterable[bytes]) -> None:
        self._pieces, self.nbytes = aiter(pieces), 0
        self._next: asyncio.Future[bytes | None] | None = None
        self.failure: Exception | None = None

    def stop(self) -> None:
        """Have reading end with an error."""
        if self._next is not None:
            self._next.cancel()

    async def read(self) -> AsyncIterator[bytes]:
        try:
            while (piece := await self._piece()) is not None:
                self.nbytes += len(piece)
                yield piece
        except Exception as error:
            self.failure = error
            raise

    async def _piece(self) -> bytes | None:
        self._next = asyncio.ensure_future(anext(self._pieces, None))
        try:
            return await self._next
        except asyncio.CancelledError:
            raise RequestCancelled("nobody waits for this upload any more") from None


def _place(name: str, expires: float) -> str:
    return f"{int(expires):012x}.{name}"


def _expiry(place: str) -> int | None:
    """The expiry in the name of an object; None for one that is not ours."""
    digits, mark, _ = place.rpartition("/")[2].partition(".")
    try:
        return int(digits, 16) if mark and len(digits) == 12 else None
    except ValueError:
        return None
