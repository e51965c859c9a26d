"""A pipeline of one's own: broker, orchestrator and replicas, as long as a context lasts."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from omnibus.broker.connection import Connection, connect
from omnibus.broker.discovery import discover
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.listening import free_port
from omnibus.errors import ConfigError, StageStartError
from omnibus.orchestrator.deployed import DeployedOrchestrator
from omnibus.orchestrator.disconnects import SystemAccount
from omnibus.pipeline.allowed_code import AllowedCode
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.deployed_pipelines import deploy_pipeline
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.settings import Settings
from omnibus.workers.hang_detector import HangWatch
from omnibus.workers.initialisation.plans import plan_stages
from omnibus.workers.replica_processes import planned_processes, with_death_reporter
from omnibus.workers.stage_checks import check_models
from omnibus.workers.supervisor import ProcessSpec, Supervisor

GRACE = 2.0
"""Seconds that replicas have to finish their tasks when everything ends: nobody will ask for the answers."""
STOP_GRACE = 25.0
"""Seconds until a replica that does not end is killed; an engine needs some of them to let its memory go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedOptions:
    """How an embedded pipeline is started. Durations are seconds."""

    state_dir: Path | None = None
    """Where the broker keeps its data; None: a folder that is removed at the end."""
    init_timeout: float = 600.0
    """How long everything may take to come up."""
    stage_init_timeout: float = 300.0
    """How long one engine may take to load."""
    log_level: str = "warning"
    """Level of the replicas' logs on stderr."""


@asynccontextmanager
async def embedded(spec: PipelineSpec, settings: Settings, options: EmbeddedOptions) -> AsyncIterator[Connection]:
    """Serve a pipeline from this process; yields a connection to its broker once every replica is up.

    The orchestrator runs here, each replica in a process of its own, which dies with this thread. Raises StageStartError
    naming the stages that are not up in time or cannot start, ConfigError, PipelineError, ServerBinaryError. When a replica
    can no longer be started later on, the context's body is cancelled, and StageStartError raised.
    """
    await asyncio.to_thread(check_models, spec.stages)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(await _server(stack, settings, options))
        connection = await stack.enter_async_context(connect(server.url, name="omnibus-embedded", role="embedded"))
        await deploy_pipeline(connection, spec)
        view, death_reporter = await stack.enter_async_context(with_death_reporter(connection, spec))
        supervisor = Supervisor(
            _processes(spec, server, options), grace=STOP_GRACE, on_death=death_reporter, metrics=connection.metrics
        )
        hangs = HangWatch(connection, view, supervisor, settings.hang_timeout)
        system = SystemAccount(url=server.system_url, account=settings.nats_account)
        orchestrator = DeployedOrchestrator(connection, spec, system=system)
        try:
            async with asyncio.TaskGroup() as group:
                keepers = [
                    group.create_task(server.supervise(), name="nats-server"),
                    group.create_task(orchestrator.run(), name="orchestrator"),
                    group.create_task(hangs.run(), name="hangs"),
                ]
                supervising = group.create_task(supervisor.run(), name="supervisor")
                await _wait_up(view, spec, options.init_timeout)
                try:
                    yield connection
                finally:
                    supervisor.stop()
                    await asyncio.wait({supervising})
                    for keeper in keepers:
                        keeper.cancel()
        except BaseExceptionGroup as group_error:
            raise _first(group_error) from group_error


async def _server(stack: AsyncExitStack, settings: Settings, options: EmbeddedOptions) -> EmbeddedServer:
    state_dir = options.state_dir
    if state_dir is None:
        folder = tempfile.TemporaryDirectory(prefix="omnibus-embedded-", ignore_cleanup_errors=True)
        state_dir = Path(stack.enter_context(folder))
    return EmbeddedServer(state_dir, binary=settings.nats_server, profile=settings.nats_profile, port=free_port())


def _processes(spec: PipelineSpec, server: EmbeddedServer, options: EmbeddedOptions) -> list[ProcessSpec]:
    """Raises ConfigError when the devices of a stage cannot be shared out, or nobody would serve a stage."""
    absent = [stage.name for stage in spec.stages if stage.num_replicas == 0]
    if absent:
        raise ConfigError(
            f"num_replicas: 0 leaves {', '.join(absent)} to workers elsewhere, which cannot reach an embedded pipeline: "
            "start it with `omnibus serve`, and name its broker with nats="
        )
    found = discover(Settings(state_dir=server.state_dir, nats_url=None))
    environment = {"OMNIBUS_LOG_LEVEL": options.log_level, "OMNIBUS_LOG_FORMAT": "console"}
    try:
        plans = plan_stages(spec)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return [
        replace(process, env={**environment, **process.env})
        for plan in plans
        for process in planned_processes(
            spec, plan, allowed=AllowedCode.of(spec), broker=found.environment, grace=GRACE,
            start_timeout=options.stage_init_timeout,
        )
    ]  # fmt: skip


async def _wait_up(view: ReplicaView, spec: PipelineSpec, timeout: float) -> None:
    try:
        await view.wait_until(lambda records: not _missing(records, spec), timeout)
    except TimeoutError as error:
        late = ", ".join(_missing(view.replicas(), spec))
        raise StageStartError(f"pipeline {spec.name!r} was not up within {timeout:g} s; missing: {late}") from error


def _missing(records: list[ReplicaRecord], spec: PipelineSpec) -> list[str]:
    up = Counter(record.stage_id for record in records if record.ready)
    return [
        f"stage {stage.name!r} ({up[stage.stage_id]} of {stage.num_replicas} replicas)"
        for stage in spec.stages
        if up[stage.stage_id] < stage.num_replicas
    ]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first plain exception of a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
