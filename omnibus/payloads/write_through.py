"""Objects that are written behind the message that refers to them, so that a lost host costs nothing from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from omnibus.errors import OmnibusError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.payloads.packing import Packed
from omnibus.wire.payload import ObjectKey

_MOST_BYTES = 256 << 20
"""Bytes that may wait to be written; beyond them the next stage waits, as for the object store itself."""
_CLOSE_TIMEOUT = 20.0
"""Seconds for what waits when its process leaves."""

Put = Callable[[ObjectKey, Packed, str], Awaitable[None]]
log = get_logger(__name__)


class WriteThrough:
    """Writes with `put`, which takes the key, the bytes and the request; one after the other, as each is many messages."""

    def __init__(self, put: Put) -> None:
        self._put = put
        self._turn = asyncio.Lock()
        self._bytes = 0
        self._writing: set[asyncio.Task[None]] = set()

    async def add(self, key: ObjectKey, packed: Packed, rid: str) -> None:
        """Have an object written soon; raises what `put` raises when it is written at once, as too much waits already."""
        if self._bytes + packed.nbytes > _MOST_BYTES:
            await self._put(key, packed, rid)
            return
        self._bytes += packed.nbytes
        writing = asyncio.create_task(self._write(key, packed, rid), name="payload-write-through")
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)

    async def close(self) -> None:
        """Write what waits, for a while."""
        if self._writing:
            _, late = await asyncio.wait(self._writing, timeout=_CLOSE_TIMEOUT)
            for writing in late:
                writing.cancel()

    async def _write(self, key: ObjectKey, packed: Packed, rid: str) -> None:
        try:
            async with self._turn:
                await self._put(key, packed, rid)
        except OmnibusError as error:  # it is in memory, and what is lost there is made anew
            log.warning(LogEvent.WRITE_THROUGH_FAILED, request=rid, error=error.message)
        finally:
            self._bytes -= packed.nbytes
