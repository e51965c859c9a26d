"""Objects that are written behind the message that refers to them, so that a lost host costs nothing from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from omnibus.errors import OmnibusError, PayloadLost
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.wire.payload import MemorySlot, ObjectKey

_MOST_BYTES = 256 << 20
"""Bytes that may wait to be written; beyond them the next stage waits, as for the object store itself."""
_CLOSE_TIMEOUT = 20.0
"""Seconds for what waits when its process leaves."""

Write = Callable[[ObjectKey, MemorySlot, int, str], Awaitable[None]]
log = get_logger(__name__)


class WriteThrough:
    """Writes with `write`, one after the other, as each is many messages.

    That takes the key, the slot that has the bytes, their number, and the request. It reads the slot, not what a stage returned
    and may have changed since.
    """

    def __init__(self, write: Write) -> None:
        self._write_one = write
        self._turn = asyncio.Lock()
        self._bytes = 0
        self._writing: set[asyncio.Task[None]] = set()

    async def add(self, key: ObjectKey, slot: MemorySlot, nbytes: int, rid: str) -> None:
        """Have an object written soon; raises what `write` raises when it is written at once, as too much waits already."""
        if self._bytes + nbytes > _MOST_BYTES:
            await self._write_one(key, slot, nbytes, rid)
            return
        self._bytes += nbytes
        writing = asyncio.create_task(self._write(key, slot, nbytes, rid), name="payload-write-through")
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)

    async def close(self) -> None:
        """Write what waits, for a while."""
        if self._writing:
            _, late = await asyncio.wait(self._writing, timeout=_CLOSE_TIMEOUT)
            for writing in late:
                writing.cancel()

    async def _write(self, key: ObjectKey, slot: MemorySlot, nbytes: int, rid: str) -> None:
        try:
            async with self._turn:
                await self._write_one(key, slot, nbytes, rid)
        except PayloadLost:  # its request has ended
            pass
        except OmnibusError as error:  # it is in memory, and what is lost there is made anew
            log.warning(LogEvent.WRITE_THROUGH_FAILED, request=rid, error=error.message)
        finally:
            self._bytes -= nbytes
