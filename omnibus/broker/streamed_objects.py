"""Objects that are never whole in memory: stored and read a window of chunks at a time, from any place in them.

In the format of `ObjectStore`; the metadata has the lowest sequence of each window, so that a reader can begin there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing

from omnibus.broker.objects import CHUNK, WINDOW, ObjectInfo, ObjectStore, digest_name, within
from omnibus.errors import PayloadLost

_WINDOW_BYTES = CHUNK * WINDOW
_STARTS = "starts"
_WINDOW_TIMEOUT = 60.0


class StreamedObjects(ObjectStore):
    """One object store. Methods raise BrokerUnavailable when the broker does not answer for a minute."""

    async def store(self, name: str, pieces: AsyncIterable[bytes], *, ttl: float) -> int:
        """Store an object that lives for `ttl` seconds; returns its bytes. What is not stored whole leaves nothing.

        Bytes of a process that dies meanwhile, or does not learn whether the metadata was stored, stay until their `ttl` is over.
        """
        nuid, lifetime = self.new_nuid(), {"Nats-TTL": str(max(1, math.ceil(ttl)))}
        digest, size, count, starts = hashlib.sha256(), 0, 0, list[int]()
        try:
            async for window in _windows(pieces):
                async with within(_WINDOW_TIMEOUT, f"object {name} was not stored"):
                    start, _ = await asyncio.gather(
                        self.put_window(nuid, window, count, lifetime), asyncio.to_thread(_add, digest, window)
                    )
                starts.append(start)
                count, size = count + len(window), size + sum(map(len, window))
            info = ObjectInfo(
                name=name, bucket=self.name, nuid=nuid, size=size, chunks=count, digest=digest_name(digest),
                metadata={_STARTS: json.dumps(starts)},
            )  # fmt: skip
        except BaseException:
            await asyncio.shield(self.purge_chunks(nuid))
            raise
        async with within(_WINDOW_TIMEOUT, f"object {name} was not stored"):
            await self.put_info(info, lifetime)  # which may be stored whatever it raises: its chunks stay
        return size

    async def read(self, name: str, first: int = 0, nbytes: int | None = None) -> AsyncIterator[bytes]:
        """The bytes of an object from `first` on, all or `nbytes` of them; raises PayloadLost when some are gone."""
        async with within(_WINDOW_TIMEOUT, f"object {name} was not read"):
            info = await self.info(name)
        if info is None:
            raise PayloadLost(f"object {name} is not in store {self.name}")
        end = info.size if nbytes is None else min(first + nbytes, info.size)
        starts = json.loads(info.metadata[_STARTS])
        for number in range(first // _WINDOW_BYTES, math.ceil(end / _WINDOW_BYTES)):
            start = number * _WINDOW_BYTES
            window = min(_WINDOW_BYTES, info.size - start)
            async with within(_WINDOW_TIMEOUT, f"object {name} was not read"):
                chunks = await self._window(info, number, starts[number], math.ceil(window / CHUNK))
            for offset, chunk in enumerate(chunks):
                place = start + offset * CHUNK
                piece = chunk[max(first - place, 0) : max(end - place, 0)]
                if piece:
                    yield piece

    async def _window(self, info: ObjectInfo, number: int, start: int, count: int) -> list[bytes]:
        """The chunks of one window, in order."""

        async def read() -> dict[int, bytes]:
            async with aclosing(self.stored_chunks(info.nuid, start, count)) as found:
                return {place: chunk async for _, place, chunk in found}

        chunks = await self.connection.retried(read)
        first = number * WINDOW
        if any(first + place not in chunks for place in range(count)):
            raise PayloadLost(f"object {info.name} in store {self.name} has lost chunks")
        return [chunks[first + place] for place in range(count)]


async def _windows(pieces: AsyncIterable[bytes]) -> AsyncIterator[list[bytes]]:
    """Chunks of pieces of any size, as many as are stored at once."""
    window, waiting = list[bytes](), bytearray()
    async for piece in pieces:
        waiting += piece
        while len(waiting) >= CHUNK:
            window.append(bytes(waiting[:CHUNK]))
            del waiting[:CHUNK]
            if len(window) == WINDOW:
                yield window
                window = []
    if waiting:
        window.append(bytes(waiting))
    if window:
        yield window


def _add(digest: hashlib._Hash, chunks: Iterable[bytes]) -> None:
    for chunk in chunks:
        digest.update(chunk)
