"""How much is open, and whether one more may come.

Two bounds. A tenant's is exact among the requests that came through this producer: it hears the end of each. The pipeline's
is estimated from the queue.
"""

from __future__ import annotations

import time
from collections import defaultdict

from omnibus.broker.backlog import Backlog
from omnibus.broker.work import WorkQueue
from omnibus.errors import Overloaded
from omnibus.pipeline.spec import PipelineSpec


class OpenRequests:
    """Open requests of one pipeline, as one producer knows them."""

    def __init__(self, queue: WorkQueue) -> None:
        self._backlog = Backlog(queue)
        self._by_tenant: dict[str, dict[str, float]] = defaultdict(dict)  # rid -> deadline
        self._tenant_of: dict[str, str] = {}

    async def check(self, spec: PipelineSpec, tenant: str) -> None:
        """Raises Overloaded when one more request would pass a bound; BrokerUnavailable when the queue cannot be read."""
        bound = spec.max_open_per_tenant
        if bound is not None and len(self._alive(tenant)) >= bound:
            raise Overloaded(
                f"tenant {tenant!r} has {bound} open requests on {spec.name!r}, its bound; try again later"
            )
        if await self._backlog.open_requests() >= spec.max_open_requests:
            raise Overloaded(f"{spec.name!r} has {spec.max_open_requests} open requests, its bound; try again later")

    def add(self, rid: str, tenant: str, deadline: float) -> bool:
        """A request is being admitted; whether it was not counted yet."""
        if rid in self._tenant_of:
            return False
        self._by_tenant[tenant][rid] = deadline
        self._tenant_of[rid] = tenant
        self._backlog.add()
        return True

    def remove(self, rid: str) -> None:
        """A request has ended; unknown ones are ignored."""
        tenant = self._tenant_of.pop(rid, None)
        if tenant is None:
            return
        self._by_tenant[tenant].pop(rid, None)
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]

    def _alive(self, tenant: str) -> dict[str, float]:
        """The tenant's requests without those whose deadline passed: their end was told and not heard."""
        now = time.time()
        for rid in [rid for rid, deadline in self._by_tenant.get(tenant, {}).items() if deadline < now]:
            self.remove(rid)
        return self._by_tenant.get(tenant, {})
