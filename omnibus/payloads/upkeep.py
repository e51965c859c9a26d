"""Upkeep of a host's shared memory: slots that no request needs are freed, though a process that should have freed them died.

The end of a request frees its payloads by a message, which may be lost, or come before a payload does. So what stays in memory
is asked about; and what a dead process left is taken over by the others of its host.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from omnibus.broker.connection import Connection
from omnibus.errors import BrokerError
from omnibus.ledger.performer import Performer
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.task_root import task_root
from omnibus.payloads.store import PayloadStore

INTERVAL = 3.0
"""Seconds between two sweeps."""
_FIRST_QUESTION, _RAREST_QUESTION = 5.0, 60.0
"""Seconds until an orchestrator is asked about a request whose payloads are here, and between two such questions at most."""
_MOST_QUESTIONS, _AT_ONCE = 512, 32
"""Questions of one sweep, at most, and how many of them are asked together."""

log = get_logger(__name__)


class MemoryUpkeep:
    """Sweeps the memory until `run` is cancelled, and what the dead have left at once."""

    def __init__(self, connection: Connection, store: PayloadStore, performer: Performer) -> None:
        self._connection, self._store, self._performer = connection, store, performer
        self._asked: dict[str, tuple[float, float]] = {}
        """When the next question about a request is due, and how long after the last one."""

    async def run(self) -> None:
        """Look after it until cancelled; no failure ends it."""
        while True:
            with task_root("payload upkeep", self._connection.metrics, pipeline=self._performer.pipeline):
                await self._sweep()
            await asyncio.sleep(INTERVAL)

    async def finish(self) -> None:
        """Ask once more, as this process leaves, about what it has stored late or for others: nobody else knows of it."""
        await self._ask_about(await self._store.written(), time.monotonic())

    async def _sweep(self) -> None:
        here = await self._store.sweep(self._connection.clock.now(), _FIRST_QUESTION)
        known = set(here)
        self._asked = {rid: asked for rid, asked in self._asked.items() if rid in known}
        now = time.monotonic()
        due = [rid for rid in here if self._asked.get(rid, (0.0, 0.0))[0] <= now]
        await self._ask_about(due, now)

    async def _ask_about(self, rids: Sequence[str], now: float) -> None:
        for first in range(0, min(len(rids), _MOST_QUESTIONS), _AT_ONCE):
            together = (self._ask(rid, now) for rid in rids[first : first + _AT_ONCE])
            if not any(await asyncio.gather(*together)):
                return  # an outage: the others are due at the next sweep

    async def _ask(self, rid: str, now: float) -> bool:
        """Free what a request has here if it has ended; False when nobody answers.

        It is asked about again later, and what it has here is gone at its deadline in any case.
        """
        pause = min(2 * self._asked.get(rid, (0.0, INTERVAL / 2))[1], _RAREST_QUESTION)
        self._asked[rid] = now + pause, pause
        asked = time.monotonic()
        try:
            run = await self._performer.ask_orphans(rid)
        except BrokerError as error:
            log.debug(LogEvent.PAYLOADS_LEFT, request=rid, error=error.message)
            return False
        if run > 0:
            self._store.forget(rid, run, asked)
        return True
