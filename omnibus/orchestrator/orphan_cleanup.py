"""Orphan cleanup: messages that a killed server restores are removed again.

A nats-server that is killed may come up with messages whose removal it had acknowledged: payloads, flows, timers, and tasks
and events that it will not deliver, for its consumers know them as done. No process would learn of them, and they would stay.
In a cluster, what is removed without waiting for an answer stays where a queue has no leader at that moment.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from omnibus.broker.connection import Connection
from omnibus.errors import Unreadable
from omnibus.ledger.performer import Performer
from omnibus.observability.task_root import task_root
from omnibus.pipeline.spec import PipelineSpec

_RECHECK_INTERVAL = 10.0
_LEADER_INTERVAL = 5.0


class OrphanCleanup:
    """Removes messages that ended requests of one pipeline have again or still.

    At the start, whenever the connection is back, and when the queue has a new leader. Any number may do this at once.
    Requests that are open then are re-checked for as long as they have anything.
    """

    def __init__(self, connection: Connection, spec: PipelineSpec, performer: Performer) -> None:
        self._connection, self._spec, self._performer = connection, spec, performer
        self._listed: tuple[int, str | None] | None = None
        """The generation of the connection, and the queue's leader, that all was listed on."""
        self._is_clustered = False
        self._open: set[str] = set()
        self._reconnected = asyncio.Event()

    async def run(self) -> None:
        """Look after it until cancelled; what an outage stops is done after it."""
        unhook = self._connection.on_reconnect(self._reconnected.set)
        try:
            while True:
                with task_root("orphan cleanup", self._connection.metrics, pipeline=self._spec.name):
                    await self._look()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await self._reconnected.wait()
                self._reconnected.clear()
        finally:
            unhook()

    @property
    def _interval(self) -> float | None:
        if self._is_clustered:
            return _LEADER_INTERVAL
        is_listed = self._listed is not None and self._listed[0] == self._connection.generation
        return None if is_listed and not self._open else _RECHECK_INTERVAL

    async def _look(self) -> None:
        """Clear up what has ended, one after the other, as open requests come first; those are read many at a time."""
        generation, leader = self._connection.generation, await self._performer.queue.led_by()
        self._is_clustered = leader is not None
        if (is_known := self._listed == (generation, leader)) and not self._open:
            return
        present = await self._performer.present(flows=self._spec.has_flows)
        looked_at = present.keys() & self._open if is_known else present.keys()
        still_open = await self._performer.ledger.open_among(looked_at)
        ended = sorted(looked_at - still_open)
        self._open = still_open | {rid for rid in ended if not await self._clear(rid, queued=present[rid])}
        self._listed = (generation, leader)

    async def _clear(self, rid: str, *, queued: bool) -> bool:
        """Clear up after a request; True when there is no more to do about it."""
        try:
            record = await self._performer.clear_orphans(rid, queued=queued)
        except Unreadable:  # its record is damaged, or of a newer version; the receiver of its tasks reports that
            return True
        return record is None or record.state.terminal
