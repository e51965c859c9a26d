"""A view of what a cluster serves: its deployed pipelines, their replicas and queues, and where a request is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from omnibus.broker.bucket import BucketEntry
from omnibus.broker.connection import Connection, connect
from omnibus.broker.discovery import Addresses
from omnibus.broker.nats_access import SYSTEM_ROLE
from omnibus.broker.watch import Watch
from omnibus.errors import BrokerDenied, BrokerError
from omnibus.ledger.work_queue import QueueDepth, WorkQueue
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.deployed_pipelines import read_pipeline
from omnibus.registry.pause_state import PauseState, PauseStates
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.wire import stores

_SYSTEM_DEADLINE = 2.0
_SHOWN = (
    "replica",
    "status",
    "reason",
    "paused",
    "slots",
    "in_flight",
    "queue_length",
    "host",
    "pid",
    "devices",
    "versions",
)
"""Fields of a replica's record in its status."""


class ClusterView(AsyncExitStack):
    """Live views of all deployed pipelines and of their replicas, in an `async with`; each opened when first asked for.

    A pipeline's view closes when the pipeline is deleted. Every method raises BrokerError when nobody can say.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._pipelines: Watch | None = None
        self._opening = asyncio.Lock()
        self._replicas: dict[str, ReplicaView] = {}
        self._opening_replicas: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._closing: set[asyncio.Task[None]] = set()
        self.push_async_callback(self._close_replicas)

    async def get(self, name: str) -> PipelineSpec | None:
        """The pipeline of this name as it is deployed now; None when there is none."""
        entry = (await self._deployed()).get(name)
        return read_pipeline(name, entry.value) if entry is not None else None

    async def all(self) -> Sequence[PipelineSpec]:
        """Every deployed pipeline that is valid here, by name."""
        entries = sorted((await self._deployed()).items())
        specs = (read_pipeline(name, entry.value) for name, entry in entries)
        return [spec for spec in specs if spec is not None]

    async def _deployed(self) -> Mapping[str, BucketEntry]:
        if self._pipelines is not None:
            return self._pipelines.snapshot
        bucket = stores.PIPELINES_BUCKET
        async with self._opening:
            if self._pipelines is None:
                if await self._connection.find(f"STREAM.INFO.KV_{bucket}") is None:
                    return {}  # until the first one is deployed
                self._pipelines = await self.enter_async_context(
                    Watch(self._connection, bucket, self._on_pipeline, keys="*")
                )
        return self._pipelines.snapshot

    async def replicas(self, spec: PipelineSpec) -> list[ReplicaRecord]:
        """The replicas of a pipeline, whatever their status. One that cannot be read holds up nothing else."""
        async with self._opening_replicas.setdefault(spec.name, asyncio.Lock()):
            view = self._replicas.get(spec.name)
            if view is None:
                view = ReplicaView(self._connection, spec.name, timeout=spec.heartbeat_timeout)
                self._replicas[spec.name] = await view.__aenter__()
                if self._pipelines is not None and spec.name not in self._pipelines.snapshot:
                    self._close_view(spec.name)  # deleted in the meantime
        return view.replicas()

    async def status(self, spec: PipelineSpec, *, system_account: bool, ages: bool = False) -> PipelineStatus:
        """The status of a pipeline now; with the `ages` of queues where these credentials may read tasks."""
        replicas = await self.replicas(spec)
        return await read_status(self._connection, spec, replicas, system_account=system_account, ages=ages)

    def _on_pipeline(self, name: str, value: bytes | None, _revision: int) -> None:
        if value is None:
            self._close_view(name)

    def _close_view(self, name: str) -> None:
        if (view := self._replicas.pop(name, None)) is not None:
            closing = asyncio.create_task(view.__aexit__(), name=f"close-view-{name}")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _close_replicas(self) -> None:
        for name in tuple(self._replicas):
            self._close_view(name)
        await asyncio.gather(*self._closing)


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
        events = self.depths.get(stores.EVENTS_CONSUMER, QueueDepth())
        return {
            "pipeline": self.spec.name,
            "events": events.waiting + events.running,
            "system_account": self.system_account,
            "stages": [
                {
                    "stage_id": stage.stage_id,
                    "name": stage.name,
                    "engine": stage.engine,
                    "pause": self.pause_states[stage.stage_id].word if stage.stage_id in self.pause_states else None,
                    "queued": self.depth(stage.stage_id).waiting,
                    "running": self.depth(stage.stage_id).running,
                    "replicas": [self._replica(one) for one in self.replicas if one.stage_id == stage.stage_id],
                }
                for stage in self.spec.stages
            ],
        }

    def _replica(self, record: ReplicaRecord) -> dict[str, Any]:
        age = round(max(0.0, self.now - record.last_heartbeat), 3)
        return {**{name: getattr(record, name) for name in _SHOWN}, "heartbeat_age": age}


async def read_status(
    connection: Connection,
    spec: PipelineSpec,
    replicas: Sequence[ReplicaRecord],
    *,
    system_account: bool = True,
    ages: bool = False,
) -> PipelineStatus:
    """The status of a pipeline whose replicas are known; with the `ages` of queues where these credentials may read tasks."""
    queue = WorkQueue(connection, spec.name)
    try:
        depths = await queue.depths(ages=ages)
    except BrokerDenied:
        depths = await queue.depths()
    pauses = await PauseStates(connection, spec.name).of(stage.stage_id for stage in spec.stages)
    return PipelineStatus(spec, list(replicas), depths, time.time(), system_account, pauses)


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
