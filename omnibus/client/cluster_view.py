"""A view of what a cluster serves: its deployed pipelines, their replicas and queues, and where a request is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Self

from omnibus.broker.connection import Connection, connect
from omnibus.broker.discovery import Addresses
from omnibus.broker.nats_access import SYSTEM_ROLE
from omnibus.broker.watch import Watch
from omnibus.errors import BrokerError
from omnibus.ledger.work_queue import QueueDepth, WorkQueue
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.deployed_pipelines import read_pipeline
from omnibus.registry.pause_state import PauseState, PauseStates
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.wire import subjects

_SYSTEM_DEADLINE = 2.0


class DeployedPipelines:
    """A live view of all deployed pipelines, in an `async with`; empty until the first one is deployed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._watch: Watch | None = None
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def get(self, name: str) -> PipelineSpec | None:
        """The pipeline as it is deployed now; None when there is none. Raises BrokerError when nobody can say."""
        return next((spec for spec in await self.all() if spec.name == name), None)

    async def all(self) -> Sequence[PipelineSpec]:
        """Every deployed pipeline that is valid here, by name. Raises BrokerError when nobody can say."""
        watch = await self._opened()
        if watch is None:
            return ()
        entries = (entry for _, entry in sorted(watch.snapshot.items()))
        specs = (read_pipeline(entry.key, entry.value) for entry in entries if entry.value is not None)
        return [spec for spec in specs if spec is not None]

    async def _opened(self) -> Watch | None:
        """The watch, from the moment on that there is a bucket to watch."""
        async with self._opening:
            if self._watch is None:
                bucket = subjects.PIPELINES_BUCKET
                if await self._connection.find(f"STREAM.INFO.KV_{bucket}") is None:
                    return None
                self._watch = await self._stack.enter_async_context(Watch(self._connection, bucket, keys="*"))
        return self._watch


class LiveReplicas:
    """Live views of the replicas of pipelines, in an `async with`; a pipeline's is opened when it is first asked for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._views: dict[str, ReplicaView] = {}
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def of(self, spec: PipelineSpec) -> list[ReplicaRecord]:
        """The replicas of a pipeline, whatever their status. Raises BrokerError when nobody can say."""
        async with self._opening:
            view = self._views.get(spec.name)
            if view is None:
                opening = ReplicaView(self._connection, spec.name, timeout=spec.heartbeat_timeout)
                view = self._views[spec.name] = await self._stack.enter_async_context(opening)
        return view.replicas()


@dataclass(frozen=True, slots=True)
class PipelineStatus:
    """A pipeline at one moment."""

    spec: PipelineSpec
    replicas: list[ReplicaRecord]
    depths: Mapping[str, QueueDepth]
    """By consumer of the work stream."""
    now: float
    system_account: bool = True
    """Whether one is known here and lets us in, as the orchestrators need it to hear of lost connections."""
    pause_states: Mapping[int, PauseState] = field(default_factory=dict)
    """Pause states that operators have set, by stage."""

    @property
    def served(self) -> bool:
        """Whether any replica works, or is about to."""
        return any(record.alive for record in self.replicas)

    def depth(self, stage_id: int) -> QueueDepth:
        """Tasks of a stage on all its lanes."""
        found = [depth for name, depth in self.depths.items() if name.startswith(f"stage-{stage_id}-")]
        return QueueDepth(sum(depth.waiting for depth in found), sum(depth.running for depth in found))

    def as_json(self) -> dict[str, Any]:
        events = self.depths.get(subjects.EVENTS_CONSUMER, QueueDepth())
        return {
            "pipeline": self.spec.name,
            "events": events.waiting + events.running,
            "system_account": self.system_account,
            "stages": [
                {
                    "stage_id": stage.stage_id,
                    "name": stage.name,
                    "engine": stage.engine,
                    "hold": self.pause_states[stage.stage_id].word if stage.stage_id in self.pause_states else None,
                    "queued": self.depth(stage.stage_id).waiting,
                    "running": self.depth(stage.stage_id).running,
                    "replicas": [self._replica(one) for one in self.replicas if one.stage_id == stage.stage_id],
                }
                for stage in self.spec.stages
            ],
        }

    def _replica(self, record: ReplicaRecord) -> dict[str, Any]:
        return {
            "replica": record.replica,
            "status": str(record.status),
            "reason": record.reason,
            "paused": record.paused,
            "slots": record.slots,
            "in_flight": record.in_flight,
            "queue_length": record.queue_length,
            "host": record.host,
            "pid": record.pid,
            "devices": record.devices,
            "heartbeat_age": round(max(0.0, self.now - record.last_heartbeat), 3),
        }


async def pipeline_status(
    connection: Connection, spec: PipelineSpec, view: ReplicaView, *, system_account: bool
) -> PipelineStatus:
    """The status of a pipeline now; raises BrokerUnavailable."""
    depths = await WorkQueue(connection, spec.name).depths()
    pauses = await PauseStates(connection, spec.name).of(stage.stage_id for stage in spec.stages)
    return PipelineStatus(spec, view.replicas(), depths, time.time(), system_account, pauses)


async def reaches_system_account(found: Addresses) -> bool:
    """Whether somebody with these settings would hear of lost connections."""
    if found.system_url is None:
        return False
    try:
        async with connect(
            found.system_url, name="status", role=SYSTEM_ROLE, access=found.system_access,
            deadline=_SYSTEM_DEADLINE, clock=False,
        ):  # fmt: skip
            return True
    except BrokerError:
        return False
