"""One replica of a stage: registers, loads its engine, takes tasks while it has free slots, leaves in order."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.errors import EngineDead
from omnibus.ledger.performer import Performer
from omnibus.ledger.records import Ledger
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.metrics import Metrics
from omnibus.payloads.store import PayloadStore
from omnibus.payloads.transports import Transports
from omnibus.payloads.upkeep import MemoryUpkeep
from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.route import Forwarding
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.choice.director import Director
from omnibus.registry.deployed_pipelines import find_deployed
from omnibus.registry.drain_orders import DrainOrders
from omnibus.registry.pause_state import PauseWatch
from omnibus.registry.presence.heartbeat import Registration
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from omnibus.wire import stores
from omnibus.wire.failure import Failure, describe
from omnibus.workers.assignment import Interruption
from omnibus.workers.claims import Claims
from omnibus.workers.control_subscriber import ControlHandlers, ControlSubscriber
from omnibus.workers.engine_health import EngineHealth
from omnibus.workers.engines import create_engine
from omnibus.workers.engines.protocol import Engine
from omnibus.workers.engines.threads import within
from omnibus.workers.execution import Execution
from omnibus.workers.initialisation.starting import start_engine
from omnibus.workers.interpreters import installed_versions
from omnibus.workers.job_builder import JobBuilder
from omnibus.workers.lanes import Lanes
from omnibus.workers.lease_keeper import LeaseKeeper
from omnibus.workers.output_writer import OutputWriter
from omnibus.workers.service_listing import ServiceListing
from omnibus.workers.stage_flows import StageFlows
from omnibus.workers.task_conclusion import TaskConclusion
from omnibus.workers.task_service import TaskService
from omnibus.workers.task_slots import TaskSlots
from omnibus.workers.task_telemetry import TaskTelemetry
from omnibus.workers.text_stream import DeltaStreams

CLOSE_TIMEOUT = 40.0
"""Seconds for an engine to free what it holds at the end; beyond the longest that one of ours takes."""
DEAD_CLOSE_TIMEOUT = 2.0
"""The same for one that is dead or stuck: its replica must come back, and its process ends with this one."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """How one replica is run. Durations are seconds."""

    instance: str = ""
    """Name that no other replica ever has; given by a supervisor that is to report its death, else made up."""
    devices: str = ""
    """Devices that its process sees, for its record."""
    grace: float = 30.0
    """How long tasks may go on after `drain`; tasks that are not done by then are requeued."""
    start_timeout: float = 300.0
    """How long the engine may take to load, and before that others to initialise one of its devices."""
    supervised: bool = False
    """Whether somebody starts it again when it says so (`Replica.comes_back`)."""
    on_loaded: Callable[[], None] = lambda: None
    transports: Transports = field(default_factory=Transports)
    """Places for payloads besides the broker."""


class Replica:
    """Runs one stage's tasks, `slots` at the same time, for as long as `run` lasts.

    The engine is the stage's unless one is given; either way it is started and closed here.
    """

    def __init__(
        self,
        conn: Connection,
        spec: PipelineSpec,
        stage: StageSpec,
        options: ReplicaOptions | None = None,
        *,
        engine: Engine | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Raises ConfigError when the stage's engine or input processor cannot be imported."""
        self._options = options or ReplicaOptions()
        self._conn, self._spec, self._stage = conn, spec, stage
        self._engine = engine if engine is not None else create_engine(stage)
        self._metrics = metrics or conn.metrics
        self._telemetry = TaskTelemetry(self._metrics, spec.name, stage.stage_id, conn.clock)
        self._claims = Claims(conn, spec, stage.stage_id)
        self._lanes = Lanes(conn, spec, stage)
        self._director = Director(conn, spec, stages=_direct_targets(spec, stage))
        self._streams = DeltaStreams(conn)
        self._registration = self._make_registration()
        self._slots = TaskSlots(stage.slots, self._claims, self._registration.set_status)
        self._payloads = PayloadStore(conn, spec.name, self._options.transports, stage=str(stage.stage_id))
        self._performer = Performer(conn, spec.name, lane_of=self._director.lane)
        self._execution = self._make_execution()
        self._health = EngineHealth(stage, self._execution, self._slots, on_death=self.drain)
        self._service = self._make_service()
        come_back = self._restart if self._options.supervised else None
        self._handlers = ControlHandlers(self._engine, self._slots, leave=self.drain, restart=come_back)
        self._pause_states = PauseWatch(conn, spec.name, stage.stage_id)
        self._control = ControlSubscriber(
            conn, spec.name, stage.stage_id,
            handlers=self._handlers, claims=self._claims,
            telemetry=self._telemetry, streams=self._streams, free=self._payloads.free,
        )  # fmt: skip
        self._listing = ServiceListing(conn, spec, stage, self._telemetry)
        self.comes_back = False
        """Whether it leaves, or has left, to be started again."""
        self._ending = asyncio.Event()
        self._turn = asyncio.Event()  # the end is near, or the id is another
        self._left = asyncio.Event()  # no more tasks can come

    @property
    def record(self) -> ReplicaRecord:
        """The last record in the coordinator."""
        return self._registration.record

    def drain(self) -> None:
        """Take no more tasks, finish what is in hand, leave; idempotent, safe in a signal handler of the loop."""
        self._ending.set()
        self._slots.close()
        self._turn.set()

    def hurry(self) -> None:
        """Requeue at once what a drain would wait for; idempotent, safe in a signal handler of the loop."""
        self.drain()
        self._claims.interrupt(Interruption.REQUEUED)

    async def run(self) -> None:
        """Serve until drained.

        Raises CheckpointMissing, StageStartError or another ConfigError when the engine does not start, EngineDead when it
        dies. Cancelling it leaves every task in hand to the others, as a death would.
        """
        async with self._director, self._pause_states, self._payloads, self._registration:
            unhook = self._conn.on_reconnect(self._registration.hurry)
            try:
                await self._load_engine()
                await self._serve()
            except Exception as error:
                await self._registration.set_status(ReplicaStatus.ERROR, Failure.of(error).message)
                raise
            finally:
                unhook()
                await self._listing.close()
                await self._control.close()
                await self._close_engine()
        log.info(LogEvent.REPLICA_DOWN, stage=self._stage.stage_id, replica=self.record.replica)

    async def _load_engine(self) -> None:
        log.info(LogEvent.REPLICA_STARTED, stage=self._stage.stage_id, replica=self.record.replica)
        who, options = f"stage {self._stage.name!r} replica {self.record.replica}", self._options
        await start_engine(self._engine, self._stage, devices=options.devices, timeout=options.start_timeout, who=who)
        options.on_loaded()

    async def _serve(self) -> None:
        """Take tasks until the end is near, then see those in hand through."""
        await self._listen()
        await self._add_adapters()
        drained = bool(self._options.instance) and await DrainOrders(self._conn, self._spec.name).stands(self.record)
        self._handlers.begin(self._pause_states.pause_state, drained=drained)
        try:
            async with asyncio.TaskGroup() as jobs:
                upkeep = MemoryUpkeep(self._conn, self._payloads, self._performer)
                side = [jobs.create_task(self._health.run(), name="engine-health")]
                if self._options.transports.memory is not None:
                    side.append(jobs.create_task(upkeep.run(), name="payload-upkeep"))
                while not self._ending.is_set():
                    await self._take_tasks(jobs)
                self._left.set()
                await self._finish()
                await self._service.concluded()
                for task in side:
                    task.cancel()
                await upkeep.finish()
        except BaseException:
            await self._service.close()
            raise
        if self._health.death is not None:
            raise self._health.death

    async def _take_tasks(self, jobs: asyncio.TaskGroup) -> None:
        """Until the end is near, or until the replica's own lane is another one."""
        self._turn.clear()
        async with self._lanes.puller() as puller:
            puller.deliver = self._service.take
            receiving = jobs.create_task(puller.until_failed(), name="receive")
            await self._slots.open(puller)
            log.info(LogEvent.REPLICA_UP, stage=self._stage.stage_id, replica=self.record.replica)
            reconciling = jobs.create_task(self._handlers.reconcile(self._pause_states), name="reconcile")
            if not self._ending.is_set():
                await self._turn.wait()
            self._slots.close()
            reconciling.cancel()
            receiving.cancel()

    async def _finish(self) -> None:
        """Let tasks end by themselves for a while; then stop those that are left, and give them to others."""
        if (death := self._health.death) is not None:
            # First of all: this ends every wait for the engine.
            self._claims.interrupt(Interruption.RELEASED)
            log.error(LogEvent.ENGINE_DEAD, stage=self._stage.stage_id, error=death.message)
            await self._registration.set_status(ReplicaStatus.ERROR, death.message)
            return
        log.info(LogEvent.REPLICA_DRAINING, stage=self._stage.stage_id, replica=self.record.replica)
        await self._registration.set_status(ReplicaStatus.DRAINING)
        await self._claims.wait_empty(self._options.grace)
        self._claims.interrupt(Interruption.REQUEUED)

    async def _listen(self) -> None:
        await self._control.listen()
        await self._listing.listen(self.record)

    async def _add_adapters(self) -> None:
        """Have the adapters that are deployed now: others were called while the engine started, from now on it is, too."""
        if not engine_kind(self._stage.engine).loads_adapters(self._stage.engine_args):
            return
        set_ones = None
        while (stage := await self._deployed_stage()) is not None:
            wanted = (stage.declared_adapters, stage.added_adapters)
            if wanted == set_ones:  # else a call may have come in between
                return
            await self._engine.rpc("set_adapters", wanted, {})
            set_ones = wanted

    async def _deployed_stage(self) -> StageSpec | None:
        """The stage as it is deployed now."""
        deployed = await find_deployed(self._conn, self._spec.name)
        return deployed.by_ref.get(self._stage.stage_id) if deployed is not None else None

    def _restart(self) -> None:
        self.comes_back = True
        self.drain()

    async def _close_engine(self) -> None:
        """Let the engine free what it holds, for a while: what a thread of it still holds ends with the process."""
        timeout = CLOSE_TIMEOUT if self._health.death is None else DEAD_CLOSE_TIMEOUT
        try:
            await within(timeout, self._execution.close(), "engine-close")
        except TimeoutError:
            pass
        except Exception as error:  # its tasks are done, and the replica leaves all the same
            self._metrics.errors.labels("engine-close").inc()
            log.exception(LogEvent.ENGINE_CLOSE_FAILED, stage=self._stage.stage_id, error=describe(error))

    async def _leave(self, death: EngineDead) -> None:
        """End because the engine is dead; returns when no more tasks can come.

        Before, a requeued task might come here again, and use up its attempts on a dead engine.
        """
        self._health.fail(death)
        await self._left.wait()

    # What the registration asks and tells

    def _load(self) -> Mapping[str, Any]:
        self._health.check()
        stats = self._engine.stats()
        return {
            "queue_length": stats.running + stats.waiting + self._lanes.waiting,
            "in_flight": len(self._claims),
            "claims": self._claims.held,
            "announced": self._claims.announced,
            "reconnects": self._conn.generation,
            "paused": self._slots.paused,
        }

    async def _registered(self, replica: str) -> None:
        before = self._lanes.replica
        self._claims.replica = self._telemetry.replica = replica
        self._claims.instance = self.record.instance
        await self._lanes.open(replica)
        if self._control.listening:
            await self._listen()  # under the new id
            self._claims.announce()  # what it had is others' by now
        if self._lanes.directed and before != replica:
            self._turn.set()

    # What it is made of

    def _make_execution(self) -> Execution:
        store, kinds = self._payloads, self._engine.outputs
        outputs = OutputWriter(self._spec, self._stage, kinds, store)
        return Execution(
            self._conn, self._stage, self._engine,
            JobBuilder(self._spec, self._stage, store, Ledger(self._conn, self._spec.name)), outputs,
            streams=self._streams,
            flows=StageFlows(
                self._conn, self._spec, kinds, outputs=outputs, store=store, performer=self._performer
            ),
        )  # fmt: skip

    def _make_service(self) -> TaskService:
        conclusion = TaskConclusion(
            self._stage, self._performer,
            claims=self._claims, telemetry=self._telemetry, health=self._health, leave=self._leave,
        )  # fmt: skip
        leases = LeaseKeeper(self._conn, lease=self._spec.heartbeat_timeout, limit=self._stage.timeout or 0.0)
        return TaskService(
            self._stage.stage_id, self._execution, conclusion,
            claims=self._claims, slots=self._slots, leases=leases, telemetry=self._telemetry, health=self._health,
        )  # fmt: skip

    def _make_registration(self) -> Registration:
        instance = self._options.instance or f"replica-{secrets.token_hex(8)}"
        record = ReplicaRecord(
            stage_id=self._stage.stage_id, replica="", instance=instance, connection=self._conn.name,
            directed=self._lanes.directed, slots=self._stage.slots, host=socket.gethostname(), pid=os.getpid(),
            devices=self._options.devices,
            versions=installed_versions(engine_kind(self._stage.engine).libraries),
        )  # fmt: skip
        return Registration(
            Bucket(self._conn, stores.replicas_bucket(self._spec.name)), record,
            timeout=self._spec.heartbeat_timeout, load=self._load,
            on_registered=self._registered, on_fenced=lambda: self._claims.interrupt(Interruption.ABANDONED),
            refresh=self._lanes.refresh, metrics=self._metrics,
        )  # fmt: skip


def _direct_targets(spec: PipelineSpec, stage: StageSpec) -> set[int]:
    """Stages whose tasks this one's replicas publish themselves."""
    return {
        edge.target
        for edge in spec.edges
        if edge.source == stage.stage_id and (edge.forwarding is Forwarding.DIRECT or edge.is_stream)
    }
