"""What a killed server brings back is removed again.

A nats-server that is killed may come up with messages whose removal it had acknowledged: payloads, timers, and tasks and
events that it will not deliver, for its consumers know them as done. Nobody would hear of them, and they would stay.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from omnibus.broker.connection import Connection
from omnibus.broker.effects import Performer
from omnibus.orchestrator.chores import guarded

_LOOK_AGAIN = 10.0


class Resurrected:
    """Looks after one pipeline at the start, and whenever the connection is back. Any number may do this at once."""

    def __init__(self, connection: Connection, pipeline: str, performer: Performer) -> None:
        self._connection, self._pipeline, self._performer = connection, pipeline, performer
        self._due = asyncio.Event()
        self._watched: set[str] = set()
        """Requests that had anything when all were listed, until they have ended."""

    async def run(self) -> None:
        """Look after what has come back until cancelled; what an outage stops is done after it."""
        self._due.set()
        unhook = self._connection.on_reconnect(self._due.set)
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_AGAIN if self._watched else None):
                        await self._due.wait()
                await guarded(self._remove(), self._connection, self._pipeline)
        finally:
            unhook()

    async def _remove(self) -> None:
        """One after the other: the work of open requests comes first. They are looked at again, once they may have ended."""
        is_due = self._due.is_set()
        self._due.clear()
        present = await self._performer.present()
        self._watched = present if is_due else self._watched & present  # what has ended since has cleared up, mostly
        for rid in sorted(self._watched):
            if await self._performer.clear_leftovers(rid, queued=True):
                self._watched.discard(rid)
