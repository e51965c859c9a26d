"""On which lane a task is published: a replica's own where its stage is directed, else the shared one it asks for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from typing import Self

from omnibus.broker.connection import Connection
from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.choice.affinity import favourite
from omnibus.registry.choice.balancers import LoadBalancer, build_load_balancer_factory
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.wire.envelope import Task


def takes_directed(record: ReplicaRecord | None) -> bool:
    """Whether a replica takes tasks from a lane of its own, now."""
    return record is not None and record.directed and record.status is ReplicaStatus.UP


class StagePool:
    """Chooses a replica for each task of one stage: by affinity first, then by policy.

    What belongs together (a session, the companions of a request) has one affinity key and goes to one replica while that is
    up; then to another. Which one needs no memory: see `affinity`.
    """

    def __init__(self, balancer: LoadBalancer) -> None:
        self._balancer = balancer

    def pick(
        self, replicas: Sequence[ReplicaRecord], task: Task | None = None, *, affinity: str | None = None
    ) -> ReplicaRecord | None:
        """The replica for a task among those of `replicas` that are up, None when none is; with a key, its favourite."""
        able = [replica for replica in replicas if replica.status is ReplicaStatus.UP]
        if not able:
            return None
        return favourite(affinity, able) if affinity is not None else able[self._balancer.select(task, able)]


class Director(AsyncExitStack):
    """Chooses lanes for publishers of a pipeline's tasks, in an `async with`.

    It watches replicas only when one of its stages is directed. Choices need not agree between publishers: a task that
    is published twice has one message id, whatever its lane.
    """

    def __init__(
        self,
        conn: Connection,
        spec: PipelineSpec,
        *,
        stages: Collection[int] | None = None,
        view: ReplicaView | None = None,
    ) -> None:
        """`stages` are those whose tasks are published here, None: all; `view` is one that the caller has open anyway."""
        super().__init__()
        self._conn, self.spec = conn, spec
        self._view = view
        self._pools = {
            stage.stage_id: StagePool(build_load_balancer_factory(stage.lb_policy)())
            for stage in spec.stages
            if LoadBalancingPolicy(stage.lb_policy).directed and (stages is None or stage.stage_id in stages)
        }

    async def __aenter__(self) -> Self:
        """Raises BrokerUnavailable when the replicas cannot be watched."""
        if self._pools and self._view is None:
            view = ReplicaView(self._conn, self.spec.name, timeout=self.spec.heartbeat_timeout)
            self._view = await self.enter_async_context(view)
        return self

    def lane(self, task: Task) -> str:
        """The lane of a task: the id of the chosen replica, or the task's shared lane when nobody is up to be chosen."""
        pool = self._pools.get(task.stage_id)
        if pool is None or self._view is None:
            return task.ticket.lane
        able = [record for record in self._view.replicas(task.stage_id) if takes_directed(record)]
        chosen = pool.pick(able, task, affinity=task.ticket.affinity)
        return chosen.replica if chosen is not None else task.ticket.lane
