"""`omnibus worker`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from omnibus.cli import options

if TYPE_CHECKING:
    from omnibus.pipeline.spec import StageSpec
    from omnibus.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class _WorkerArguments:
    """Arguments of `omnibus worker`."""

    pipeline: str | None
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


@click.command("worker")
@click.option("--stage", required=True, metavar="ID|NAME", help="Which stage.")
@options.replicas
@options.pipeline
@options.stage_overrides
@options.allow_module
@options.nats
@options.grace
@options.stage_init_timeout
@options.log_stats
@options.state_dir
@options.log_level
def command(
    *, nats_url: str | None, state_dir: Any, log_level: str | None, allow_module: tuple[str, ...], **arguments: Any
) -> None:
    """Run replicas of one stage of a deployed pipeline, here: a process each, started again when it dies.

    It may be started before the broker and before the pipeline is deployed, and stopped at any time: SIGTERM or Ctrl-C
    lets replicas finish what they have, a second one kills them.
    """
    from omnibus.cli.root import end_with_parent, load_settings, run, start_logging  # noqa: PLC0415

    end_with_parent()
    settings = load_settings(
        nats_url=nats_url, state_dir=state_dir, log_level=log_level, allowed_modules=allow_module or None
    )
    start_logging(settings)
    run(_work(settings, _WorkerArguments(**arguments)))


async def _work(settings: Settings, arguments: _WorkerArguments) -> None:
    from omnibus.broker.discovery import discover  # noqa: PLC0415
    from omnibus.cli.process_group import Fleet, log_stats, supervise  # noqa: PLC0415
    from omnibus.cli.root import START_WAIT, connected, find_pipeline  # noqa: PLC0415
    from omnibus.pipeline.allowed_code import AllowedCode  # noqa: PLC0415
    from omnibus.pipeline.files import is_path  # noqa: PLC0415
    from omnibus.pipeline.overrides import override_locally  # noqa: PLC0415
    from omnibus.workers.hang_detector import HangWatch  # noqa: PLC0415
    from omnibus.workers.replica_processes import with_death_reporter  # noqa: PLC0415
    from omnibus.workers.stage_checks import check_models  # noqa: PLC0415
    from omnibus.workers.supervisor import Supervisor  # noqa: PLC0415

    async with connected(settings, role="supervisor", stage=arguments.stage, wait=START_WAIT) as connection:
        deployed = await find_pipeline(connection, arguments.pipeline, wait=START_WAIT)
        stage = deployed.stage(arguments.stage)
        overrides = arguments.overrides(stage)
        spec = override_locally(deployed, stage.stage_id, overrides)
        allowed = AllowedCode(frozenset(settings.allowed_modules)).with_changes(deployed, spec)
        if arguments.pipeline is not None and is_path(arguments.pipeline):
            allowed = AllowedCode.of(spec, settings.allowed_modules)
        allowed.check(spec.stage(stage.stage_id))
        await asyncio.to_thread(check_models, [spec.stage(stage.stage_id)])
        fleet = Fleet(
            spec=spec, overrides=overrides, allowed=allowed,
            settings=settings, addresses=discover(settings),
            grace=arguments.grace, stage_init_timeout=arguments.stage_init_timeout,
        )  # fmt: skip
        plans = fleet.plan({stage.stage_id})
        processes = [process for plan in plans for process in fleet.replicas(plan)]
        async with with_death_reporter(connection, fleet.spec) as (view, death_reporter):
            supervisor = Supervisor(
                processes, grace=arguments.grace + 5.0, on_death=death_reporter, metrics=connection.metrics
            )  # fmt: skip
            hangs = HangWatch(connection, view, supervisor, settings.hang_timeout)
            await supervise(supervisor, hangs.run(), *([log_stats(view)] if arguments.log_stats else []))
