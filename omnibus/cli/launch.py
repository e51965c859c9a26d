"""The work of `omnibus serve` and `omnibus worker`: a group of processes, and the broker that they meet at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from omnibus.broker.connection import Connection
from omnibus.broker.discovery import discover, running_server
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.listening import free_port, is_free
from omnibus.broker.nats_access import Access, without_password
from omnibus.cli import frontdoor_processes
from omnibus.cli.coming_up import ComingUp
from omnibus.cli.command_health import CommandHealth, replicas_check
from omnibus.cli.metrics_port import metrics_shown, shared_metrics, sharing
from omnibus.cli.options import SETTING
from omnibus.cli.process_group import Fleet, keep_running
from omnibus.cli.readiness import Readiness
from omnibus.cli.root import (
    START_WAIT,
    Wanted,
    connected,
    end_with_parent,
    find_pipeline,
    load_settings,
    run,
    start_logging,
)
from omnibus.errors import ConfigError, PortTaken
from omnibus.pipeline.allowed_code import AllowedCode
from omnibus.pipeline.loading import load_pipeline
from omnibus.pipeline.overrides import (
    apply_async_chunk,
    apply_cli_tokenizer,
    lb_policies,
    override_locally,
    override_stages,
)
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.deployed_pipelines import deploy_pipeline
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.settings import Settings
from omnibus.workers.initialisation.plans import LogicalStageInitPlan
from omnibus.workers.stage_checks import check_models
from omnibus.workers.supervisor import Supervisor

_OF_THE_EMBEDDED_SERVER = {
    "nats_host": "--nats-host", "nats_port": "--nats-port", "nats_security": "--nats-security", "nats_insecure": "--insecure",
}  # fmt: skip
"""Settings of the server that `serve` starts, and their flags."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeArguments:
    """Arguments of `omnibus serve`."""

    pipeline: str
    platform: str | None
    stages: str | None
    replicas: int | None
    stage_overrides: tuple[str, ...]
    lb_policy: tuple[str, ...]
    tokenizer: str | None
    async_chunk: bool | None
    no_frontdoor: bool
    grace: float
    stage_init_timeout: float
    init_timeout: float
    log_stats: bool

    def spec(self) -> PipelineSpec:
        """The pipeline as it is deployed: the file, and over it what the command line changes. Raises PipelineError."""
        spec = load_pipeline(self.pipeline, self.platform)
        if self.tokenizer is not None:
            spec = apply_cli_tokenizer(spec, self.tokenizer)
        if self.async_chunk is not None:
            spec = apply_async_chunk(spec, self.async_chunk)
        spec = override_stages(spec, self.stage_overrides)
        return override_stages(spec, lb_policies(spec, self.lb_policy), "--lb-policy")

    def local_stages(self, spec: PipelineSpec) -> list[StageSpec]:
        """The stages of which this command starts replicas; raises PipelineError for one that there is not."""
        if self.stages is None:
            return [stage for stage in spec.stages if self.replicas or stage.num_replicas]
        return [spec.stage(ref.strip()) for ref in self.stages.split(",") if ref.strip()]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerArguments:
    """Arguments of `omnibus worker`."""

    pipeline: Wanted
    stage: str
    replicas: int | None
    stage_overrides: tuple[str, ...]
    grace: float
    stage_init_timeout: float
    log_stats: bool

    def overrides(self, stage: StageSpec) -> tuple[str, ...]:
        """All that is otherwise here than deployed: devices are shared out among the replicas of this command."""
        number = () if self.replicas is None else (f"{stage.name}.num_replicas={self.replicas}",)
        return (*number, *self.stage_overrides)


def serve(arguments: ServeArguments) -> None:
    """Serve a pipeline until Ctrl-C or SIGTERM. What can be found wrong before anything starts is raised first."""
    end_with_parent()
    spec, settings = arguments.spec(), load_settings()
    start_logging(settings)
    _check_server_flags(settings)
    _check_role(settings)
    settings = _with_nats_port(settings)
    with nullcontext(settings) if arguments.no_frontdoor else frontdoor_processes.port_taken(settings) as taken:
        check_models(arguments.local_stages(spec))  # last: it may convert a checkpoint, which takes a minute
        run(_serve(spec, taken, arguments))


async def _serve(spec: PipelineSpec, settings: Settings, arguments: ServeArguments) -> None:
    async with _broker(settings) as found, _metered(found, role="serve") as (connection, folder, health):
        fleet = Fleet(
            spec=spec, settings=found, addresses=discover(found),
            allowed=AllowedCode.of(spec, found.allowed_modules),
            grace=arguments.grace, stage_init_timeout=arguments.stage_init_timeout,
        )  # fmt: skip
        here = None if arguments.stages is None else {stage.stage_id for stage in arguments.local_stages(spec)}
        plans = fleet.plan(here, replicas=arguments.replicas, allow_zero=here is None)
        await deploy_pipeline(connection, spec, replicas=found.nats_replicas)
        coming = ComingUp(
            connection=connection, fleet=fleet, plans=plans, source=arguments.pipeline, embedded=found is not settings,
            front_doors=0 if arguments.no_frontdoor else found.frontdoors, init_timeout=arguments.init_timeout,
        )  # fmt: skip
        services = [fleet.orchestrator()]
        if not arguments.no_frontdoor:
            services += frontdoor_processes.processes(found, fleet.environment(), "--pipeline", spec.name)
        replicas = fleet.replicas(plans)

        async def announce(view: ReplicaView, supervisor: Supervisor) -> None:
            health.follow(replicas_check(connection, view, supervisor, [one.name for one in replicas]))
            await coming.announce(view, supervisor)

        try:
            processes = sharing([*services, *replicas], folder)
            await keep_running(connection, fleet, processes, announce, stats=arguments.log_stats)
        finally:
            await coming.say_what_stays()


def _check_server_flags(settings: Settings) -> None:
    """Raises ConfigError for flags of the embedded server where another one is used: they would change nothing."""
    noted = click.get_current_context().meta
    given = [flag for name, flag in _OF_THE_EMBEDDED_SERVER.items() if f"{SETTING}{name}" in noted]
    running = running_server(settings.state_dir)
    if not given or _starts_server(settings) or (given == ["--nats-port"] and settings.nats_port == 0):
        return
    if settings.nats_url is not None or running is None:
        raise ConfigError(
            f"{given[0]} is for the nats-server that `serve` starts, and --nats names another", param=given[0]
        )
    at = without_password(running.url)
    if set(given) <= {"--nats-host", "--nats-port"} and at.endswith(f"://{settings.nats_host}:{settings.nats_port}"):
        return
    raise ConfigError(
        f"a nats-server runs over {settings.state_dir} already, at {at}, which {given[0]} would not change: leave it out, "
        "or choose another --state-dir", param=given[0],
    )  # fmt: skip


def _check_role(settings: Settings) -> None:
    """Raises ConfigError for credentials of one role: `serve` does what several roles may, and no user may all of it."""
    if (role := Access.of(settings).described("serve").get("role")) is not None:
        raise ConfigError(
            f"the credentials are those of the role {role}, and `serve` does what several roles may: with a user for each role "
            "deploy the pipeline (`omnibus pipeline deploy`), then start `omnibus orchestrator`, `omnibus frontdoor` and "
            "`omnibus worker`; at a server that `serve` starts itself leave the credentials out", param="--credentials",
        )  # fmt: skip


def _with_nats_port(settings: Settings) -> Settings:
    """The settings with a port for the embedded server; raises PortTaken where one was asked for that others have."""
    port, host = settings.nats_port, settings.nats_host
    if port == 0:  # started again it keeps its port
        return settings.model_copy(update={"nats_port": free_port()})
    if "nats_port" in settings.model_fields_set and _starts_server(settings) and not is_free(host, port):
        free_port(host)  # raises where the address is not this machine's
        raise PortTaken(f"port {port} on {host} is taken; choose another with --nats-port", param="nats_port")
    return settings


def _starts_server(settings: Settings) -> bool:
    return settings.nats_url is None and running_server(settings.state_dir) is None


@asynccontextmanager
async def _broker(settings: Settings) -> AsyncIterator[Settings]:
    """The settings with the address of a broker that runs as long as the context."""
    if not _starts_server(settings):
        yield settings
        return
    async with EmbeddedServer.of(settings) as server, asyncio.TaskGroup() as group:
        keeper = group.create_task(server.supervise(), name="nats-server")
        yield settings.model_copy()  # by which it is found in the state directory
        keeper.cancel()


@asynccontextmanager
async def _metered(settings: Settings, **known: Any) -> AsyncIterator[tuple[Connection, Path, CommandHealth]]:
    """A connection, the folder of the metrics of all processes here, and the health that is shown with them."""
    health = CommandHealth()
    with shared_metrics() as folder:
        async with connected(settings, **known) as connection:
            with metrics_shown(settings, connection.metrics, health):
                yield connection, folder, health


def work(arguments: WorkerArguments) -> None:
    """Run replicas of one stage until Ctrl-C or SIGTERM."""
    end_with_parent()
    settings = load_settings()
    start_logging(settings)
    run(_work(settings, arguments))


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedWorker:
    """All that replicas of one stage are started with."""

    connection: Connection
    folder: Path
    """Where the metrics of its processes meet."""
    health: CommandHealth
    fleet: Fleet
    stage: StageSpec
    plans: list[LogicalStageInitPlan]


@asynccontextmanager
async def prepared_worker(settings: Settings, arguments: WorkerArguments) -> AsyncIterator[PreparedWorker]:
    """Connect, find the pipeline and check the stage; raises what would keep its replicas from starting."""
    async with _metered(settings, role="supervisor", stage=arguments.stage, wait=START_WAIT) as made:
        connection, folder, health = made
        deployed = await find_pipeline(connection, arguments.pipeline, wait=START_WAIT)
        stage = deployed.stage(arguments.stage)
        overrides = arguments.overrides(stage)
        spec = override_locally(deployed, stage.stage_id, overrides)
        allowed = AllowedCode(frozenset(settings.allowed_modules)).with_changes(deployed, spec)
        if deployed is arguments.pipeline:  # a file's
            allowed = AllowedCode.of(spec, settings.allowed_modules)
        allowed.check(spec.stage(stage.stage_id))
        await asyncio.to_thread(check_models, [spec.stage(stage.stage_id)])
        fleet = Fleet(
            spec=spec, overrides=overrides, allowed=allowed,
            settings=settings, addresses=discover(settings),
            grace=arguments.grace, stage_init_timeout=arguments.stage_init_timeout,
        )  # fmt: skip
        plans = fleet.plan({stage.stage_id})
        yield PreparedWorker(
            connection=connection, folder=folder, health=health, fleet=fleet, stage=stage, plans=plans
        )  # fmt: skip


async def _work(settings: Settings, arguments: WorkerArguments) -> None:
    async with prepared_worker(settings, arguments) as prepared:
        connection, fleet, stage, plans = prepared.connection, prepared.fleet, prepared.stage, prepared.plans
        spec = fleet.spec

        started = fleet.replicas(plans)

        async def announce(view: ReplicaView, supervisor: Supervisor) -> None:
            prepared.health.follow(replicas_check(connection, view, supervisor, [one.name for one in started]))
            count = len(started)
            readiness = Readiness(
                connection, spec, view, lambda part, rest: click.echo(f"up: {part}{rest}"),
                lambda one: one.instance in supervisor.instances,
            )  # fmt: skip
            await readiness.replicas({stage.stage_id: count})
            replicas = f"{count} replica{'s' if count > 1 else ''}"
            nats = without_password(fleet.addresses.url)
            click.echo(f"ready: {spec.name}, {replicas} of stage {stage.stage_id} {stage.name}, NATS {nats}")

        processes = sharing(started, prepared.folder)
        await keep_running(connection, fleet, processes, announce, stats=arguments.log_stats)
