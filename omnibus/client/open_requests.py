"""How much is open, and whether one more may come.

Two bounds. A tenant's is exact among the requests that came through this producer: it hears the end of each. The pipeline's
is estimated from the queue.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from omnibus.broker.clock import ServerClock
from omnibus.errors import Overloaded
from omnibus.ledger.backlog import Backlog
from omnibus.ledger.work_queue import WorkQueue
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.overload import Pace, retry_after

_SWEEP_EVERY = 1.0


@dataclass(frozen=True, slots=True)
class QuotaSlot:
    """What is known of an open request."""

    tenant: str
    asked: str
    """The lane that it asked for."""
    lane: str
    """The one that it takes."""
    deadline: float
    """Seconds since the epoch, by the server's clock."""


@dataclass(slots=True)
class _Tenant:
    open: dict[str, QuotaSlot] = field(default_factory=dict)
    lanes: Counter[str] = field(default_factory=Counter)
    """How many asked for each."""
    swept: float = 0.0
    ended: int = 0
    pace: Pace = field(default_factory=Pace)


class OpenRequests:
    """Open requests of one pipeline, as one producer knows them."""

    def __init__(self, queue: WorkQueue, clock: ServerClock) -> None:
        self._backlog, self._clock = Backlog(queue), clock
        self._tenants: dict[str, _Tenant] = {}
        self._tenant_of: dict[str, str] = {}

    async def take_slot(self, spec: PipelineSpec, rid: str, slot: QuotaSlot) -> bool:
        """Count a request that is about to be admitted; whether it was not counted yet, and is to be settled.

        Raises Overloaded when it would pass a bound, and BrokerUnavailable when the queue cannot be read; then it is not
        counted. Exact for a tenant, however many ask at the same time.
        """
        if rid in self._tenant_of:
            return False
        self._check_tenant(spec, slot.tenant)
        tenant = self._tenants.setdefault(slot.tenant, _Tenant())
        tenant.open[rid] = slot
        tenant.lanes[slot.asked] += 1
        tenant.pace.mark(time.monotonic(), tenant.ended)
        self._tenant_of[rid] = slot.tenant
        try:
            await self._backlog.take_slot(spec, slot.lane)
        except BaseException:
            self.remove(rid, ended=False)
            raise
        return True

    def settle(self, rid: str, *, admitted: bool) -> None:
        """The admission of a counted request is over; one that was not admitted counts no longer."""
        self._backlog.settle(admitted=admitted)
        if not admitted:
            self.remove(rid, ended=False)

    def remove(self, rid: str, *, ended: bool = True) -> None:
        """A request has ended, or was not accepted; unknown ones are ignored."""
        name = self._tenant_of.pop(rid, None)
        if name is None:
            return
        tenant = self._tenants[name]
        tenant.lanes[tenant.open.pop(rid).asked] -= 1
        if ended:
            tenant.ended += 1
            tenant.pace.mark(time.monotonic(), tenant.ended)
        if not tenant.open:
            del self._tenants[name]

    def count(self, tenant: str, lane: str | None = None) -> int:
        """Open requests of a tenant; those only that asked for this lane."""
        self._sweep(tenant)
        known = self._tenants.get(tenant)
        if known is None:
            return 0
        return len(known.open) if lane is None else known.lanes[lane]

    def _sweep(self, tenant: str) -> None:
        """Remove those whose deadline passed, now and then: their end was told and not heard."""
        known, now = self._tenants.get(tenant), self._clock.now()
        if known is None or now - known.swept < _SWEEP_EVERY:
            return
        known.swept = now
        for rid in [rid for rid, slot in known.open.items() if slot.deadline < now]:
            self.remove(rid)

    def _check_tenant(self, spec: PipelineSpec, tenant: str) -> None:
        bound = spec.max_open_per_tenant
        if bound is None or (count := self.count(tenant)) < bound:
            return
        raise Overloaded(
            f"tenant {tenant!r} has {bound} open requests on {spec.name!r}, its bound; try again later",
            retry_after=retry_after(count - bound + 1, self._tenants[tenant].pace.a_second(time.monotonic())),
        )
