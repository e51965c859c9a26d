"""What a killed server brings back is removed again.

A nats-server that is killed may come up with messages whose removal it had acknowledged. Tasks and events among them are met
where they are handled, and a timer fires; of stored payloads nobody would hear, and they would stay for their whole lifetime.
"""

from __future__ import annotations

import asyncio

from omnibus.broker.connection import Connection
from omnibus.broker.effects import Performer
from omnibus.orchestrator.chores import guarded


class Resurrected:
    """Looks after one pipeline at the start, and whenever the connection is back. Any number may do this at once."""

    def __init__(self, connection: Connection, pipeline: str, performer: Performer) -> None:
        self._connection, self._pipeline, self._performer = connection, pipeline, performer
        self._due = asyncio.Event()

    async def run(self) -> None:
        """Look after what has come back until cancelled; what an outage stops is done after it."""
        unhook = self._connection.on_reconnect(self._due.set)
        try:
            while True:
                await guarded(self._remove(), self._connection, self._pipeline)
                await self._due.wait()
                self._due.clear()
        finally:
            unhook()

    async def _remove(self) -> None:
        """One after the other: open requests store things too, and their work comes first."""
        for rid in sorted(await self._performer.storing()):
            await self._performer.clear_leftovers(rid)
