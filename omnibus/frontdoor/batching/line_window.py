"""How many lines of batches are open on one pipeline, and whose line is the next."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Iterable
from contextlib import suppress

from omnibus.errors import BrokerError, RequestError
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.ledger.overload import most_at_once
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus

MOST_OPEN = 256
"""Lines that one front door has open on a pipeline, however many slots it has; the bound on its memory."""
AHEAD = 2
"""Lines for each slot where the pipeline has a lane for them: one runs, one waits."""
_UNKNOWN = 8
"""The same of lines that name no model that is served: their endpoint refuses them at once."""
_REST = 1.0
"""Seconds after a refusal in which further ones say nothing new."""


def most_open(spec: PipelineSpec, replicas: Iterable[ReplicaRecord]) -> int:
    """How many lines keep a pipeline busy: by the slots of its widest stage, and never more than half of its room. Pure.

    Where the pipeline has no lane for them, they stand in the way of interactive requests: no more than there are slots.
    """
    slots: dict[int, int] = {}
    for one in replicas:
        if one.status is ReplicaStatus.UP:
            slots[one.stage_id] = slots.get(one.stage_id, 0) + one.slots
    ahead = AHEAD if "batch" in spec.lanes else 1
    return max(1, min(ahead * max(slots.values(), default=1), most_at_once(spec) // 2, MOST_OPEN))


class LineWindow:
    """Room for the lines of all batches on one pipeline. What becomes free goes to the batch that expires first.

    A refusal halves the room, and answers widen it again, one for each round of them: more than the pipeline takes is not
    pressed upon it.
    """

    def __init__(self) -> None:
        self._most, self._room, self._open = 1, 1.0, 0
        self._rests_until = 0.0
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = itertools.count()

    def resize(self, most: int) -> None:
        """The pipeline can have so many now."""
        if most != self._most:
            self._room = min(self._room, most) if self._room < self._most else float(most)
            self._most = most
            self._grant()

    async def acquire(self, expires: float) -> None:
        """Wait for room for one more line, of a batch that expires then; it has to be released."""
        granted = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (expires, next(self._count), granted))
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._release()
            raise

    def release(self, *, answered: bool) -> None:
        """A line is over."""
        if answered:
            self._room = min(self._room + 1 / self._room, float(self._most))
        self._release()

    def refused(self) -> None:
        """The pipeline has no room for a line."""
        now = time.monotonic()
        if now >= self._rests_until:
            self._rests_until, self._room = now + _REST, max(1.0, min(self._room, self._open) / 2)

    def _release(self) -> None:
        self._open -= 1
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self._open < int(self._room):
            granted = heapq.heappop(self._waiting)[2]
            if not granted.done():
                self._open += 1
                granted.set_result(None)


class LineWindows:
    """The windows of all pipelines at one front door."""

    def __init__(self, context: FrontDoorContext) -> None:
        self._context = context
        self._windows: dict[str, LineWindow] = {}

    async def enter(self, model: str | None, expires: float) -> LineWindow:
        """Wait for room for a line that names this model, of a batch that expires then; its window, to be released."""
        name, most = "", _UNKNOWN
        with suppress(RequestError, BrokerError):  # the endpoint says so itself
            spec = (await self._context.models.find(model)).spec
            name, most = spec.name, most_open(spec, await self._context.replicas(spec))
        window = self._windows.setdefault(name, LineWindow())
        window.resize(most)
        await window.acquire(expires)
        return window

    async def lacks_replicas(self, model: str | None) -> bool:
        """Whether a stage of this model has no replica up."""
        with suppress(RequestError, BrokerError):
            return bool(await self._context.missing_stages((await self._context.models.find(model)).spec))
        return False
