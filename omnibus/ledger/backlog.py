"""How much of a pipeline is open and how fast requests end, for whoever admits: read off the queue, four times a second."""

from __future__ import annotations

import time

from omnibus.errors import Overloaded
from omnibus.ledger.work_queue import WorkQueue
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.overload import Pace, bound, messages_a_request, retry_after

_FRESH = 0.25
_MESSAGES_AT_A_TIME = 2  # of an open request: its timer, and a task or an event


class Backlog:
    """An estimate of the open requests of a pipeline: half of what is queued, and what was admitted here since or is being.

    Those whose admission is under way while the queue is read may count twice, so the bound is never passed by one door.
    Whoever admits elsewhere is seen a quarter of a second later: together they may pass the bound by what they all admit
    in that time. Ends are counted by the messages that leave the queue, from whichever door their requests came.
    """

    def __init__(self, queue: WorkQueue) -> None:
        self._queue = queue
        self._measured, self._measured_at = 0, 0.0
        self._underway, self._admitted = 0, 0
        self._seen = 0
        """Of those admitted, what had been when the last reading began: their messages are in it."""
        self._removals = Pace()

    async def take_slot(self, spec: PipelineSpec, lane: str) -> None:
        """Count one more request, about to be admitted to a lane; its admission over, `settle` is to be called.

        Raises Overloaded at its bound, and BrokerUnavailable; then it is not counted.
        """
        count, most = await self._open_requests(), bound(spec, lane)
        if count >= most:
            raise Overloaded(
                f"{spec.name!r} has {most} open requests, its bound; try again later",
                retry_after=retry_after(count - most + 1, self._pace(spec)),
            )
        self._underway += 1

    def settle(self, *, admitted: bool) -> None:
        """The admission of a counted request is over, so that what it queued is seen by whoever reads the queue."""
        self._underway -= 1
        self._admitted += admitted

    async def _open_requests(self) -> int:
        now = time.monotonic()
        if now - self._measured_at > _FRESH:
            self._measured_at, seen = now, self._admitted  # whoever comes meanwhile need not ask, too
            traffic = await self._queue.traffic()
            self._measured = traffic.messages // _MESSAGES_AT_A_TIME
            self._seen = seen
            self._removals.mark(time.monotonic(), traffic.removed)
        return self._measured + self._admitted - self._seen + self._underway

    def _pace(self, spec: PipelineSpec) -> float | None:
        """Ends a second; None while it is not known. Requests that need few of the stages count for less."""
        removals = self._removals.a_second(time.monotonic())
        return removals / messages_a_request(spec) if removals is not None else None
