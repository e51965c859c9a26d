"""The lanes that one replica takes tasks from: those that its stage shares and, where tasks are directed, its own."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_consumer, lane_consumer, remove_consumer
from omnibus.broker.puller import Puller
from omnibus.errors import BrokerDenied, BrokerError
from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire import subjects

CLOSE_TIMEOUT = 1.0
"""Seconds in which the broker must have taken the last acknowledgements for the own lane's consumer to be removed."""
_PAUSE = 0.01
_BRIEFLY = 12


class Lanes:
    """The lanes of one replica of a stage. Its own lane bears its id, and comes first: `open` it whenever the id is another."""

    def __init__(self, conn: Connection, spec: PipelineSpec, stage: StageSpec) -> None:
        self._conn, self._spec, self._stage_id = conn, spec, stage.stage_id
        self.directed = LoadBalancingPolicy(stage.lb_policy).directed
        """Whether there is a lane of its own."""
        self.replica = ""
        self.waiting = 0
        """Tasks on its own lane that nobody has in hand, as of the last `refresh`."""

    async def open(self, replica: str) -> None:
        """Make the own lane readable; idempotent. Raises BrokerError: BrokerDenied where only operators may make consumers."""
        if self.directed:
            timeout = self._spec.heartbeat_timeout
            consumer = lane_consumer(self._spec.name, self._stage_id, replica, heartbeat_timeout=timeout)
            try:
                await ensure_consumer(self._conn, consumer)
            except BrokerDenied as error:
                raise BrokerDenied(
                    f"stage {self._stage_id} of {self._spec.name} has an lb_policy, so that each replica needs a consumer of "
                    "its own, which the credentials of a worker may not make: set lb_policy: broker, or give this worker "
                    "those of the embedded server"
                ) from error
        self.replica = replica

    def puller(self) -> Puller:
        """Takes tasks: from the first lane that has one, though every eighth time from another, which would starve else."""
        lanes = (self.replica, *self._spec.stage_lanes) if self.directed else self._spec.stage_lanes
        first, *others = [subjects.stage_consumer(self._stage_id, lane) for lane in lanes]
        stream, label = subjects.work_stream(self._spec.name), f"stage-{self._stage_id}"
        lease = self._spec.heartbeat_timeout
        return Puller(self._conn, stream, (first, *others), favoured=others[::-1], lease=lease, label=label)

    async def refresh(self) -> None:
        """Ask how many tasks wait on the own lane; without an answer the last one stands, for no heartbeat may wait long."""
        if not self.directed:
            return
        with suppress(TimeoutError, BrokerError):
            async with asyncio.timeout(self._spec.heartbeat_timeout / _BRIEFLY):
                self.waiting, _ = await self._depth()

    async def close(self) -> None:
        """Remove the own lane's consumer, in an orderly leave without claims. Tasks that still wait there are rerouted.

        It stays when the broker has not taken all acknowledgements yet, which would be lost with it: the next replica of
        the same id takes it over.
        """
        if not self.directed:
            return
        with suppress(TimeoutError, BrokerError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                while True:
                    _, in_hand = await self._depth()
                    if in_hand == 0:
                        break
                    await asyncio.sleep(_PAUSE)  # acknowledgements have no answer to wait for
                await remove_consumer(self._conn, lane_consumer(self._spec.name, self._stage_id, self.replica))

    async def _depth(self) -> tuple[int, int]:
        """Tasks on the own lane that wait, and those that somebody has in hand."""
        name = subjects.stage_consumer(self._stage_id, self.replica)
        info = await self._conn.find(f"CONSUMER.INFO.{subjects.work_stream(self._spec.name)}.{name}")
        return (info["num_pending"], info["num_ack_pending"]) if info is not None else (0, 0)
