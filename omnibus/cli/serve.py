"""`omnibus serve`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from omnibus.cli import options

if TYPE_CHECKING:
    from omnibus.cli.process_group import Fleet
    from omnibus.pipeline.spec import PipelineSpec, StageSpec
    from omnibus.settings import Settings
    from omnibus.workers.initialisation import LogicalStageInitPlan
    from omnibus.workers.supervisor import ProcessSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class _ServeArguments:
    """Arguments of `omnibus serve`."""

    pipeline: str
    platform: str | None
    stages: str | None
    replicas: int | None
    stage_overrides: tuple[str, ...]
    lb_policy: tuple[str, ...]
    tokenizer: str | None
    no_frontdoor: bool
    grace: float
    stage_init_timeout: float
    init_timeout: float
    log_stats: bool

    def spec(self) -> PipelineSpec:
        """The pipeline as it is deployed: the file, and over it what the command line changes. Raises PipelineError."""
        from omnibus.pipeline.loading import load_pipeline  # noqa: PLC0415 commands import when they run
        from omnibus.pipeline.overrides import apply_cli_tokenizer, lb_policies, override_stages  # noqa: PLC0415

        spec = load_pipeline(self.pipeline, self.platform)
        if self.tokenizer is not None:
            spec = apply_cli_tokenizer(spec, self.tokenizer)
        spec = override_stages(spec, self.stage_overrides)
        return override_stages(spec, lb_policies(spec, self.lb_policy), "--lb-policy")

    def local_stages(self, spec: PipelineSpec) -> list[StageSpec]:
        """The stages of which this command starts replicas; raises PipelineError for one that there is not."""
        if self.stages is None:
            return [stage for stage in spec.stages if self.replicas or stage.num_replicas]
        return [spec.stage(ref.strip()) for ref in self.stages.split(",") if ref.strip()]

    def plan(self, fleet: Fleet) -> list[LogicalStageInitPlan]:
        """Every stage; those that are not chosen are left to workers elsewhere. Raises PipelineError, ConfigError."""
        if self.stages is None:
            return fleet.plan(replicas=self.replicas, allow_zero=True)
        return fleet.plan({stage.stage_id for stage in self.local_stages(fleet.spec)}, replicas=self.replicas)


@click.command("serve")
@click.argument("pipeline")
@options.front_door
@click.option("--served-model-name", metavar="NAME", help="A further name for the model.")
@options.nats
@click.option("--nats-host", metavar="ADDRESS", help="Where the embedded server listens; loopback by default.")
@click.option(
    "--nats-security",
    metavar="DIR",
    type=click.Path(),
    help="Its users and TLS certificate: `omnibus nats credentials`.",
)
@click.option(
    "--insecure",
    "nats_insecure",
    is_flag=True,
    default=None,
    help="Let other machines in without TLS, by password alone.",
)
@click.option("--nats-port", type=click.IntRange(0, 65535), help="Port of the embedded server; 0 takes a free one.")
@click.option("--stages", metavar="LIST", help="Stages that run here, such as 0,1; by default all.")
@options.replicas
@options.stage_overrides
@options.allow_module
@click.option(
    "--lb-policy",
    multiple=True,
    metavar="[STAGE=]POLICY",
    help="Who picks replicas: broker, random, round-robin or least-queue-length; may be repeated.",
)
@click.option("--tokenizer", metavar="PATH|NAME", help="The tokenizer of LLM stages that name none.")
@options.platform
@click.option("--no-frontdoor", is_flag=True, help="Without the HTTP server.")
@options.grace
@options.stage_init_timeout
@options.init_timeout
@options.log_stats
@options.state_dir
@options.log_level
def command(*, allow_module: tuple[str, ...], **flags: Any) -> None:
    """Serve PIPELINE, a file or the name of a shipped one: broker, orchestrator, front door and stages, supervised.

    An embedded NATS server is started over the state directory, unless one runs there already, or --nats or OMNIBUS_NATS_URL
    names another. Ctrl-C ends everything in order; a second one kills.
    """
    from omnibus.cli.root import end_with_parent, load_settings, run, start_logging  # noqa: PLC0415
    from omnibus.workers.stage_checks import check_models  # noqa: PLC0415

    end_with_parent()
    arguments = _ServeArguments(**{name: flags.pop(name) for name in _ServeArguments.__slots__})
    spec = arguments.spec()
    settings = load_settings(allowed_modules=allow_module or None, **flags)
    start_logging(settings)
    check_models(arguments.local_stages(spec))
    settings = _with_free_ports(settings)
    if not arguments.no_frontdoor:
        _check_port(settings)
    run(_serve(spec, settings, arguments))


async def _serve(spec: PipelineSpec, settings: Settings, arguments: _ServeArguments) -> None:
    from omnibus.broker.discovery import discover  # noqa: PLC0415
    from omnibus.cli.coming_up import ComingUp  # noqa: PLC0415
    from omnibus.cli.process_group import Fleet, log_stats, supervise  # noqa: PLC0415
    from omnibus.cli.root import connected  # noqa: PLC0415
    from omnibus.pipeline.allowed_code import AllowedCode  # noqa: PLC0415
    from omnibus.registry.deployed_pipelines import deploy_pipeline  # noqa: PLC0415
    from omnibus.workers.hang_detector import HangWatch  # noqa: PLC0415
    from omnibus.workers.replica_processes import with_death_reporter  # noqa: PLC0415
    from omnibus.workers.supervisor import Supervisor  # noqa: PLC0415

    async with _broker(settings) as found, connected(found, role="serve") as connection:
        fleet = Fleet(
            spec=spec, settings=found, addresses=discover(found),
            allowed=AllowedCode.of(spec, found.allowed_modules),
            grace=arguments.grace, stage_init_timeout=arguments.stage_init_timeout,
        )  # fmt: skip
        plans = arguments.plan(fleet)
        await deploy_pipeline(connection, spec, replicas=found.nats_replicas)
        async with with_death_reporter(connection, spec) as (view, death_reporter):
            supervisor = Supervisor(
                _processes(fleet, plans, arguments),
                grace=arguments.grace + 5.0,
                on_death=death_reporter,
                metrics=connection.metrics,
            )
            coming = ComingUp(
                connection=connection, fleet=fleet, plans=plans, view=view, supervisor=supervisor, source=arguments.pipeline,
                front_door=not arguments.no_frontdoor, init_timeout=arguments.init_timeout,
                embedded=found is not settings,
            )  # fmt: skip
            hangs = HangWatch(connection, view, supervisor, found.hang_timeout)
            stats = [log_stats(view)] if arguments.log_stats else []
            try:
                await supervise(supervisor, coming.announce(), hangs.run(), *stats)
            finally:
                await coming.say_what_stays()


def _processes(fleet: Fleet, plans: list[LogicalStageInitPlan], arguments: _ServeArguments) -> list[ProcessSpec]:
    front_door = [] if arguments.no_frontdoor else [fleet.front_door()]
    return [fleet.orchestrator(), *front_door, *(process for plan in plans for process in fleet.replicas(plan))]


@asynccontextmanager
async def _broker(settings: Settings) -> AsyncIterator[Settings]:
    """The settings with the address of a broker that runs as long as the context."""
    from omnibus.broker.discovery import running_server  # noqa: PLC0415
    from omnibus.broker.embedded import EmbeddedServer  # noqa: PLC0415

    if settings.nats_url is not None or running_server(settings.state_dir) is not None:
        yield settings
        return
    async with EmbeddedServer.of(settings) as server, asyncio.TaskGroup() as group:
        keeper = group.create_task(server.supervise(), name="nats-server")
        yield settings.model_copy()  # by which it is found in the state directory
        keeper.cancel()


def _with_free_ports(settings: Settings) -> Settings:
    """Port 0 made a free one here: a child that is started again keeps its port."""
    from omnibus.broker.embedded import free_port  # noqa: PLC0415

    zero = [name for name in ("port", "nats_port") if getattr(settings, name) == 0]
    return settings.model_copy(update={name: free_port() for name in zero})


def _check_port(settings: Settings) -> None:
    """Raises PortTaken before anything is started: another server there would answer in the front door's place."""
    from omnibus.frontdoor.server import listen  # noqa: PLC0415

    listen(settings.host, settings.port).close()
