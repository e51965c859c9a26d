"""How much is open, whether one more request may come, and when there is room again for one that was refused: their 429.

Two bounds. The pipeline's is estimated from the queue. A tenant's is exact among the requests that came through one producer,
which knows the end of each.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field

from omnibus.broker.clock import ServerClock
from omnibus.errors import Overloaded
from omnibus.ledger.work_queue import WorkQueue
from omnibus.pipeline.routing import plan_route
from omnibus.pipeline.spec import OVERFLOW_LANE, PipelineSpec
from omnibus.requests.advance import needs_event

SHORTEST, LONGEST = 1.0, 60.0
"""Seconds that anybody is asked to wait."""
WINDOW = 10.0
"""Seconds that a pace looks back."""
_FRESH = 0.25
_MESSAGES_AT_A_TIME = 2  # of an open request: its timer, and a task or an event
_SWEEP_EVERY = 1.0


class Rate:
    """The growth of a count over the last WINDOW seconds. Times are of a monotonic clock."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()
        self._grown_at: float | None = None

    def mark(self, now: float, count: int) -> None:
        """The count stands here now; marks are kept some way apart, so that memory is bounded."""
        self._forget(now)
        if not self._marks or count > self._marks[-1][1]:
            self._grown_at = now  # after a time in which nobody looked, watching begins anew
        if len(self._marks) > 1 and now - self._marks[-2][0] < _FRESH:
            self._marks.pop()
        self._marks.append((now, count))

    def retry_after(self, now: float, must_end: int, *, each: int = 1) -> float:
        """Seconds until `must_end` have ended, each of which is a growth by `each`; from SHORTEST to LONGEST.

        Nobody knows who else waits for the same room: it is the time until there is some, and no reservation. Without a pace
        to go by, it is the time since anything grew: 1, 2, 4 s for one who comes again, and more only where work is slow.
        """
        self._forget(now)
        (since, first), (_, last) = (self._marks[0], self._marks[-1]) if self._marks else ((now, 0), (now, 0))
        if last - first >= each and now - since >= _FRESH:
            expected = must_end * each * (now - since) / (last - first)
        else:
            expected = now - self._grown_at if self._grown_at is not None else SHORTEST
        return min(max(expected, SHORTEST), LONGEST)

    def _forget(self, now: float) -> None:
        while self._marks and self._marks[0][0] < now - WINDOW:
            self._marks.popleft()


def bound(spec: PipelineSpec, lane: str) -> int:
    """Open requests at which one more for this lane is refused: the last tenth of room is for interactive requests of tenants
    within their share."""
    reserved = 0 if lane == "interactive" else spec.max_open_requests // 10
    return spec.max_open_requests - reserved


def most_at_once(spec: PipelineSpec) -> int:
    """How many requests a tenant may have open where nothing else is; those beyond its share wait in the overflow."""
    most, share = spec.max_open_requests, spec.tenant_share
    if share is not None:
        most = max(bound(spec, OVERFLOW_LANE), min(share, most))
    return most if spec.max_open_per_tenant is None else min(most, spec.max_open_per_tenant)


def messages_a_request(spec: PipelineSpec) -> int:
    """Messages that the queue stores for a request that needs every stage: its timer, tasks, and events."""
    route = plan_route(spec, None)
    return 1 + sum(1 + needs_event(route, stage_id) for stage_id in route.stage_ids)


class Backlog:
    """An estimate of the open requests of a pipeline: half of what is queued, and what was admitted here since or is being.

    The queue is read four times a second. Those whose admission is under way meanwhile may count twice, so the bound is never
    passed by one door; together, several may pass it by what they all admit in a quarter of a second. Ends are counted by the
    messages that leave the queue, from whichever door their requests came.
    """

    def __init__(self, queue: WorkQueue) -> None:
        self._queue = queue
        self._measured, self._measured_at = 0, 0.0
        self._underway, self._admitted = 0, 0
        self._seen = 0
        """Number of admissions before the last reading began: their messages are in it."""
        self._removals = Rate()

    async def take_slot(self, spec: PipelineSpec, lane: str) -> None:
        """Count one more request, about to be admitted to a lane; its admission over, `admission_over` is to be called.

        Raises Overloaded at its bound, and BrokerUnavailable; then it is not counted.
        """
        count, most = await self._open_requests(), bound(spec, lane)
        if count >= most:
            must_end, each = count - most + 1, messages_a_request(spec)
            raise Overloaded(
                f"{spec.name!r} has {most} open requests, its bound; try again later",
                retry_after=self._removals.retry_after(time.monotonic(), must_end, each=each),
            )
        self._underway += 1

    def admission_over(self, *, admitted: bool) -> None:
        """The admission of a counted request is over, so that what it queued is seen by the next reading of the queue."""
        self._underway -= 1
        self._admitted += admitted

    async def _open_requests(self) -> int:
        now = time.monotonic()
        if now - self._measured_at > _FRESH:
            self._measured_at, seen = now, self._admitted  # others that come meanwhile need not ask, too
            traffic = await self._queue.traffic()
            self._measured = traffic.messages // _MESSAGES_AT_A_TIME
            self._seen = seen
            self._removals.mark(time.monotonic(), traffic.removed)
        return self._measured + self._admitted - self._seen + self._underway


@dataclass(frozen=True, slots=True)
class QuotaSlot:
    """An open request's place in the quotas of its tenant and its pipeline."""

    tenant: str
    asked: str
    """The lane that it asked for."""
    lane: str
    """The one that it takes."""
    deadline: float
    """Seconds since the epoch, by the server's clock."""


@dataclass(slots=True)
class _Tenant:
    lanes: Counter[str] = field(default_factory=Counter)
    """Its open requests, by the lane that they asked for."""
    ended: int = 0
    pace: Rate = field(default_factory=Rate)


class OpenRequests:
    """Open requests of one pipeline, as one producer knows them."""

    def __init__(self, queue: WorkQueue, clock: ServerClock) -> None:
        self._backlog, self._clock = Backlog(queue), clock
        self._open: dict[str, QuotaSlot] = {}
        self._tenants: dict[str, _Tenant] = {}
        """Those that have any."""
        self._swept = 0.0

    async def take_slot(self, spec: PipelineSpec, rid: str, slot: QuotaSlot) -> bool:
        """Count a request that is about to be admitted; whether it was not counted yet, and is to be settled.

        Raises Overloaded when it would pass a bound, and BrokerUnavailable when the queue cannot be read; then it is not
        counted. Exact for a tenant, however many ask at the same time.
        """
        if rid in self._open:
            return False
        self._check_tenant(spec, slot.tenant)
        tenant = self._tenants.setdefault(slot.tenant, _Tenant())
        tenant.lanes[slot.asked] += 1
        tenant.pace.mark(time.monotonic(), tenant.ended)
        self._open[rid] = slot
        try:
            await self._backlog.take_slot(spec, slot.lane)
        except BaseException:
            self.remove(rid, ended=False)
            raise
        return True

    def admission_over(self, rid: str, *, admitted: bool) -> None:
        """The admission of a counted request is over; one that was not admitted counts no longer."""
        self._backlog.admission_over(admitted=admitted)
        if not admitted:
            self.remove(rid, ended=False)

    def remove(self, rid: str, *, ended: bool = True) -> None:
        """A request has ended, or was not accepted; unknown ones are ignored."""
        slot = self._open.pop(rid, None)
        if slot is None:
            return
        tenant = self._tenants[slot.tenant]
        tenant.lanes[slot.asked] -= 1
        tenant.ended += ended
        tenant.pace.mark(time.monotonic(), tenant.ended)
        if not tenant.lanes.total():
            del self._tenants[slot.tenant]

    def count(self, tenant: str, lane: str | None = None) -> int:
        """Open requests of a tenant; those only that asked for this lane."""
        self._sweep()
        lanes = self._tenants.get(tenant, _Tenant()).lanes
        return lanes.total() if lane is None else lanes[lane]

    def _sweep(self) -> None:
        """Remove those whose deadline passed, now and then: the notice of their end was lost."""
        now = self._clock.now()
        if now - self._swept < _SWEEP_EVERY:
            return
        self._swept = now
        for rid in [rid for rid, slot in self._open.items() if slot.deadline < now]:
            self.remove(rid)

    def _check_tenant(self, spec: PipelineSpec, name: str) -> None:
        most = spec.max_open_per_tenant
        if most is None or (count := self.count(name)) < most:
            return
        raise Overloaded(
            f"tenant {name!r} has {most} open requests on {spec.name!r}, its bound; try again later",
            retry_after=self._tenants[name].pace.retry_after(time.monotonic(), count - most + 1),
        )
