"""Replicas' own lanes: orchestrators make them readable, and reroute tasks to the shared lane when their replica is not up.

Such tasks are never NAKed: that would leave them on a lane that no replica reads. Any number of orchestrators may do this at
once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Coroutine
from contextlib import suppress
from typing import Any

from omnibus.broker.connection import Connection
from omnibus.broker.layout import Layout, ensure_layout, own_lane_consumer
from omnibus.ledger.directed_lanes import DirectedLanes
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.task_root import task_root
from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.choice.director import takes_directed
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from omnibus.registry.presence.replica_view import ReplicaChange, ReplicaView
from omnibus.wire import subjects

Lane = tuple[int, str]
"""Stage, and the replica that the lane belongs to."""

log = get_logger(__name__)


class Rerouting:
    """Looks after the replicas' own lanes of one pipeline.

    A lane is looked at when its replica registers or changes its status. All are at the start and, where stages are
    directed or a look failed, once a heartbeat timeout: somebody who had not heard yet that a replica left may have
    published to its lane afterwards, and the server removes the consumer of a lane that a paused replica did not read for long.
    """

    def __init__(self, conn: Connection, spec: PipelineSpec, view: ReplicaView) -> None:
        self._conn, self._spec, self._view = conn, spec, view
        self._directed = {one.stage_id for one in spec.stages if LoadBalancingPolicy(one.lb_policy).directed}
        self._lanes = DirectedLanes(conn, spec.name)
        self._due: dict[Lane, None] = {}
        """In the order in which they became due."""
        self._woken = asyncio.Event()
        self._is_behind = False  # a step has failed

    async def run(self) -> None:
        """Look after the lanes until cancelled; outages are waited out."""
        unhook = self._view.on_change(self._on_message)
        try:
            while True:
                self._is_behind = False
                await self._guarded(self._look_everywhere())
                with suppress(TimeoutError):
                    await self._work_off(asyncio.get_running_loop().time() + self._spec.heartbeat_timeout)
        finally:
            unhook()

    def _on_message(self, change: ReplicaChange) -> None:
        record = change.after or change.before
        if record is not None and record.directed and _life(change.before) != _life(change.after):
            self._due[record.stage_id, record.replica] = None
            self._woken.set()

    async def _work_off(self, until: float) -> None:
        """Look after lanes as they become due; raises TimeoutError when all are to be looked at again.

        Invariant: the time ends waiting, never work. A lane that is taken from those due is known nowhere else.
        """
        while True:
            async with asyncio.timeout_at(until if self._directed or self._is_behind else None):
                await self._woken.wait()
            self._woken.clear()
            while self._due:
                lane = next(iter(self._due))
                del self._due[lane]
                await self._guarded(self._look_after(lane))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a step; a failed one is repeated when all lanes are looked at the next time."""
        is_done = False
        with task_root("rerouting", self._conn.metrics, pipeline=self._spec.name):
            await work
            is_done = True
        self._is_behind |= not is_done

    async def _look_everywhere(self) -> None:
        registered = {record.key for record in self._view.replicas() if record.directed}
        for lane in sorted(registered | await self._lanes.occupied()):
            await self._guarded(self._look_after(lane))

    async def _look_after(self, lane: Lane) -> None:
        """Make a lane readable while its replica is registered, and empty it while that takes no tasks."""
        record = self._record(lane)
        if lane[1] in self._spec.stage_lanes:
            return
        if not takes_directed(record):
            await self._empty(lane)
        if record is not None and record.alive and lane[0] in self._directed:
            timeout = self._spec.heartbeat_timeout
            consumer = own_lane_consumer(self._spec.name, *lane, heartbeat_timeout=timeout)
            await ensure_layout(self._conn, Layout((), (consumer,)))

    async def _empty(self, lane: Lane) -> None:
        """Reroute the tasks of a lane, except those that its replica, still there, has claimed.

        A task that the replica was given has used up one attempt and no more: replicas reroute a task that they get twice.
        """
        stage_id, replica = lane
        sequence, moved = 0, 0
        reached = await self._lanes.reached(stage_id, replica)
        while not takes_directed(record := self._record(lane)):
            found = await self._lanes.first(stage_id, replica, sequence)
            if found is None:
                break
            headers = found.headers or {}
            sequence = int(headers["Nats-Sequence"])
            if subjects.parse_rid(headers["Nats-Subject"]) not in _in_hand(record):
                await self._lanes.reroute(found, self._spec.stage_lanes, used=int(sequence <= reached))
                moved += 1
        if moved:
            log.info(LogEvent.TASK_REROUTED, stage=stage_id, replica=replica, tasks=moved)

    def _record(self, lane: Lane) -> ReplicaRecord | None:
        stage_id, replica = lane
        return next((record for record in self._view.replicas(stage_id) if record.replica == replica), None)


def _life(record: ReplicaRecord | None) -> tuple[str, ReplicaStatus] | None:
    return (record.instance, record.status) if record is not None else None


def _in_hand(record: ReplicaRecord | None) -> Container[str]:
    """Requests that a replica finishes before it leaves; one that was marked down has none."""
    return frozenset(rid for rid, _ in record.claims) if record is not None else frozenset()
