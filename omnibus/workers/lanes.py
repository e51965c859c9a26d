"""The lanes that one replica takes tasks from: those that its stage shares and, where tasks are directed, its own.

Orchestrators make the consumer of the own lane readable; until then the puller is refused there, and asks again.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from omnibus.broker.connection import Connection
from omnibus.broker.puller import Puller
from omnibus.errors import BrokerDenied, BrokerError
from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire import stores

_BRIEFLY = 12


class Lanes:
    """The lanes of one replica of a stage. Its own lane bears its id, and comes first: `open` it whenever the id is another."""

    def __init__(self, conn: Connection, spec: PipelineSpec, stage: StageSpec) -> None:
        self._conn, self._spec, self._stage_id = conn, spec, stage.stage_id
        self._step = max(1, stage.slots // 8)
        self.directed = LoadBalancingPolicy(stage.lb_policy).directed
        """Whether there is a lane of its own."""
        self.replica = ""
        self.waiting = 0
        """Tasks on its own lane that nobody has in hand, as of the last `refresh`."""

    async def open(self, replica: str) -> None:
        """Take the lane of this id for the own one; raises BrokerError: BrokerDenied where the credentials do not name it."""
        if self.directed:
            try:
                await self._depth(replica)
            except BrokerDenied as error:
                raise BrokerDenied(
                    f"the credentials of this worker do not name the lane {replica} of the directed stage {self._stage_id} of "
                    f"{self._spec.name}: make them anew with `omnibus nats credentials`, run fewer replicas of the stage, or "
                    "set lb_policy: broker"
                ) from error
        self.replica = replica

    def puller(self) -> Puller:
        """Takes tasks: from the first lane that has one, though every eighth time from another, which would starve else."""
        lanes = (self.replica, *self._spec.stage_lanes) if self.directed else self._spec.stage_lanes
        first, *others = [stores.stage_consumer(self._stage_id, lane) for lane in lanes]
        stream, label = stores.work_stream(self._spec.name), f"stage-{self._stage_id}"
        lease = self._spec.heartbeat_timeout
        return Puller(
            self._conn, stream, (first, *others), favoured=others[::-1], step=self._step, lease=lease, label=label
        )

    async def refresh(self) -> None:
        """Ask how many tasks wait on the own lane; without an answer the last one stands, for no heartbeat may wait long."""
        if not self.directed:
            return
        with suppress(TimeoutError, BrokerError):
            async with asyncio.timeout(self._spec.heartbeat_timeout / _BRIEFLY):
                self.waiting = await self._depth(self.replica)

    async def _depth(self, replica: str) -> int:
        """Tasks that wait on the lane of a replica."""
        name = stores.stage_consumer(self._stage_id, replica)
        info = await self._conn.find(f"CONSUMER.INFO.{stores.work_stream(self._spec.name)}.{name}")
        return int(info["num_pending"]) if info is not None else 0
