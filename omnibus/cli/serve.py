"""`omnibus serve`: everything on this machine."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from omnibus.cli import options

if TYPE_CHECKING:
    from omnibus.cli.fleet import Fleet
    from omnibus.cli.readiness import Readiness
    from omnibus.pipeline.spec import PipelineSpec, StageSpec
    from omnibus.settings import Settings
    from omnibus.workers.supervisor import ProcessSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What the command line asks for."""

    pipeline: str
    stages: str | None
    replicas: int | None
    no_frontdoor: bool
    grace: float
    stage_init_timeout: float

    def counts(self, spec: PipelineSpec) -> dict[int, int]:
        """Replicas to start here, by stage id; raises PipelineError for a stage that there is not."""
        chosen: tuple[StageSpec, ...] = spec.stages
        if self.stages is not None:
            chosen = tuple(spec.stage(ref.strip()) for ref in self.stages.split(",") if ref.strip())
        return {stage.stage_id: stage.num_replicas if self.replicas is None else self.replicas for stage in chosen}


@click.command("serve")
@click.argument("pipeline")
@options.host
@options.port
@options.api_key
@click.option("--served-model-name", metavar="NAME", help="A further name for the model.")
@options.nats
@click.option("--nats-port", type=click.IntRange(0, 65535), help="Port of the embedded server; 0 takes a free one.")
@click.option("--stages", metavar="LIST", help="Stages that run here, such as 0,1; by default all.")
@options.replicas
@click.option("--no-frontdoor", is_flag=True, help="Without the HTTP server.")
@options.grace
@options.stage_init_timeout
@options.state_dir
@options.log_level
def command(*, api_key: tuple[str, ...], **flags: Any) -> None:
    """Serve PIPELINE, a file or the name of a shipped one: broker, orchestrator, front door and stages, supervised.

    An embedded NATS server is started over the state directory, unless one runs there already, or --nats or OMNIBUS_NATS_URL
    names another. Ctrl-C ends everything in order; a second one kills.
    """
    from omnibus.cli.root import end_with_parent, load_settings, run, start_logging  # noqa: PLC0415
    from omnibus.pipeline.loading import load_pipeline  # noqa: PLC0415 commands import when they run

    end_with_parent()
    order = _Order(**{name: flags.pop(name) for name in _Order.__slots__})
    spec = load_pipeline(order.pipeline)
    settings = load_settings(api_keys=api_key or None, **flags)
    start_logging(settings)
    run(_serve(spec, _with_free_ports(settings), order))


async def _serve(spec: PipelineSpec, settings: Settings, order: _Order) -> None:
    from omnibus.broker.discovery import discover  # noqa: PLC0415
    from omnibus.cli.fleet import Fleet, supervise, witnessed  # noqa: PLC0415
    from omnibus.cli.readiness import Readiness  # noqa: PLC0415
    from omnibus.cli.root import connected  # noqa: PLC0415
    from omnibus.registry.pipelines import deploy_pipeline  # noqa: PLC0415
    from omnibus.workers.supervisor import Supervisor  # noqa: PLC0415

    async with _broker(settings) as found, connected(found, role="serve") as connection:
        await deploy_pipeline(connection, spec, replicas=found.nats_replicas)
        fleet = Fleet(
            spec=spec, settings=found, addresses=discover(found),
            grace=order.grace, stage_init_timeout=order.stage_init_timeout,
        )  # fmt: skip
        async with witnessed(connection, spec) as (view, witness), asyncio.TaskGroup() as group:
            supervisor = Supervisor(
                _processes(fleet, order), grace=order.grace + 5.0, on_death=witness, metrics=connection.metrics
            )
            readiness = Readiness(connection, spec, view, _say)
            announcing = group.create_task(_announce(readiness, fleet, order), name="announce")
            await supervise(supervisor)
            announcing.cancel()


def _processes(fleet: Fleet, order: _Order) -> list[ProcessSpec]:
    front_door = [] if order.no_frontdoor else [fleet.front_door()]
    replicas = [
        process
        for stage_id, count in order.counts(fleet.spec).items()
        for process in fleet.replicas(fleet.spec.stage(stage_id), count)
    ]
    return [fleet.orchestrator(), *front_door, *replicas]


async def _announce(readiness: Readiness, fleet: Fleet, order: _Order) -> None:
    settings = fleet.settings
    door = None if order.no_frontdoor else (settings.host, settings.port)
    await readiness.wait(order.counts(fleet.spec), front_door=door)
    where = f" at http://{settings.host}:{settings.port}" if door else ""
    nats_url = re.sub(r"//[^@/,]*@", "//", fleet.addresses.url)  # without a password
    _say(f"ready: {fleet.spec.name}{where}, NATS {nats_url}")


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
        yield settings.model_copy(update={"nats_url": server.url, "nats_system_url": server.system_url})
        keeper.cancel()


def _with_free_ports(settings: Settings) -> Settings:
    """Port 0 made a free one here: a child that is started again keeps its port."""
    from omnibus.broker.embedded import free_port  # noqa: PLC0415

    zero = [name for name in ("port", "nats_port") if getattr(settings, name) == 0]
    return settings.model_copy(update={name: free_port() for name in zero})


def _say(line: str) -> None:
    click.echo(line)
