"""The replicas of one directed stage, as whoever publishes its tasks chooses among them: affinity first, then policy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from omnibus.registry.choice.affinity import favourite
from omnibus.registry.choice.balancers import LoadBalancer
from omnibus.registry.presence.replica_info import ReplicaInfo
from omnibus.registry.presence.replica_record import ReplicaStatus
from omnibus.wire.envelope import Task

MOST_BINDINGS = 65_536
"""Bindings that one pool keeps; the ones used longest ago give way, and are chosen for anew."""


class StagePool:
    """Chooses a replica for each task of one stage.

    What belongs together (a session, the companions of a request) has one affinity key and goes to one replica while
    that is up; then to another. Which one needs no memory (see `affinity`), unless somebody who knows better binds it.
    """

    def __init__(self, balancer: LoadBalancer) -> None:
        self._balancer = balancer
        self._bound: OrderedDict[str, tuple[str, str]] = OrderedDict()  # key → id and life of a replica

    def pick(
        self, replicas: Sequence[ReplicaInfo], task: Task | None = None, *, affinity: str | None = None
    ) -> ReplicaInfo | None:
        """The replica for a task, among those of `replicas` that are up; None when none is.

        With an `affinity` key: the bound one while this life of it is up, else the key's favourite, whatever the policy.
        """
        able = [replica for replica in replicas if replica.status is ReplicaStatus.UP]
        if not able:
            return None
        if affinity is not None:
            return self._find(able, affinity) or favourite(affinity, able)
        return able[self._balancer.select(task, able)]

    def bind(self, affinity: str, replica: ReplicaInfo) -> None:
        """Have all tasks of a key go to this life of a replica from now on."""
        self._bound[affinity] = replica.replica, replica.instance
        self._bound.move_to_end(affinity)
        if len(self._bound) > MOST_BINDINGS:
            self._bound.popitem(last=False)

    def release(self, affinity: str) -> None:
        """The key's session or request is over; idempotent."""
        self._bound.pop(affinity, None)

    def invalidate(self, replica: str) -> tuple[str, ...]:
        """Forget what is bound to a replica, such as one that died; returns the keys."""
        lost = tuple(key for key, (bound, _) in self._bound.items() if bound == replica)
        for key in lost:
            del self._bound[key]
        return lost

    def _find(self, able: Sequence[ReplicaInfo], affinity: str) -> ReplicaInfo | None:
        wanted = self._bound.get(affinity)
        if wanted is None:
            return None
        self._bound.move_to_end(affinity)
        return next((replica for replica in able if (replica.replica, replica.instance) == wanted), None)
