"""Gauges of a pipeline's queues: how many tasks wait on each lane, and since when."""

from __future__ import annotations

import asyncio
from math import nan

from omnibus.broker.connection import Connection
from omnibus.ledger.work_queue import QueueDepth, WorkQueue
from omnibus.observability.task_root import task_root
from omnibus.wire import stores

EVERY = 5.0
"""Seconds between two measurements: a fraction of how often anybody scrapes."""
TIMEOUT = 3.0
_UNKNOWN = QueueDepth(nan)  # type: ignore[arg-type]


class QueueGauges:
    """Keeps the gauges of one pipeline true; they are NaN while the broker does not answer."""

    def __init__(self, connection: Connection, pipeline: str) -> None:
        self._connection, self._pipeline = connection, pipeline
        self._queue = WorkQueue(connection, pipeline)
        self._seen = set[tuple[int, str]]()

    async def run(self, every: float = EVERY) -> None:
        """Measure until cancelled."""
        while True:
            await self.measure()
            await asyncio.sleep(every)

    async def measure(self) -> None:
        """Measure once; no failure leaves an old number standing."""
        found, other = dict[tuple[int, str], QueueDepth](), _UNKNOWN
        with task_root("queue-gauges", self._connection.metrics):
            async with asyncio.timeout(TIMEOUT):
                for consumer, depth in (await self._queue.depths(ages=True)).items():
                    if (lane := stores.parse_stage_consumer(consumer)) is not None:
                        found[lane] = depth
            other = QueueDepth()
        self._seen |= found.keys()
        for stage_id, name in self._seen:
            self._set((self._pipeline, str(stage_id), name), found.get((stage_id, name), other))

    def _set(self, labels: tuple[str, str, str], depth: QueueDepth) -> None:
        now = self._connection.clock.now()
        self._connection.metrics.queued.labels(*labels).set(depth.waiting)
        age = depth.waiting * 0.0 if depth.since is None else max(now - depth.since, 0.0)
        self._connection.metrics.queue_age.labels(*labels).set(age)
