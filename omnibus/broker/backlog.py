"""How much of a pipeline is open, for whoever admits: read off the queue, at most four times a second."""

from __future__ import annotations

import time

from omnibus.broker.work import WorkQueue

_FRESH = 0.25
_MESSAGES_A_REQUEST = 2  # its timer, and a task or an event


class Backlog:
    """An estimate of the open requests of a pipeline: half of what is queued, and what was admitted here since."""

    def __init__(self, queue: WorkQueue) -> None:
        self._queue = queue
        self._measured, self._measured_at, self._since = 0, 0.0, 0

    async def open_requests(self) -> int:
        """Open requests now; raises BrokerUnavailable."""
        now = time.monotonic()
        if now - self._measured_at > _FRESH:
            self._measured_at = now  # before the await: whoever comes meanwhile need not ask too
            self._since = 0
            self._measured = await self._queue.messages() // _MESSAGES_A_REQUEST
        return self._measured + self._since

    def add(self) -> None:
        """A request was admitted here."""
        self._since += 1
