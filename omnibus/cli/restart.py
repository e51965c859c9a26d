"""`omnibus restart`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from omnibus.cli import options

if TYPE_CHECKING:
    from omnibus.settings import Settings


@click.command("restart")
@click.option("--stage", metavar="ID|NAME", help="Which stage.")
@click.option("--all", "every", is_flag=True, help="All stages, one after the other.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for each replica to finish what it has and be up again.",
)
@options.pipeline
@options.nats
@options.state_dir
def command(
    *,
    stage: str | None,
    every: bool,
    timeout: float,
    pipeline: str | None,
    nats_url: str | None,
    state_dir: Path | None,
) -> None:
    """Restart the replicas of a stage, one after the other, while requests flow.

    Each finishes its tasks, or hands them back after the grace period of its worker, ends, is started again by its worker and
    is up before the next one leaves. Exit code 1 when one does not come back; those after it stay as they are.
    """
    from omnibus.cli.root import ask, load_settings  # noqa: PLC0415 commands import when they run

    if every == (stage is not None):
        raise click.UsageError("give --stage or --all")
    ask(_restart(load_settings(nats_url=nats_url, state_dir=state_dir), pipeline, stage, timeout))


async def _restart(settings: Settings, pipeline: str | None, ref: str | None, timeout: float) -> None:
    from omnibus.cli.deployed import find_pipeline  # noqa: PLC0415
    from omnibus.cli.root import connected  # noqa: PLC0415
    from omnibus.client.rolling_restart import restart_replicas  # noqa: PLC0415
    from omnibus.errors import ReplicaMissing  # noqa: PLC0415

    async with connected(settings, role="restart") as connection:
        spec = await find_pipeline(connection, pipeline)
        for stage in spec.stages if ref is None else (spec.stage(ref),):
            count = await restart_replicas(connection, spec, stage.stage_id, timeout=timeout, say=click.echo)
            if count == 0:
                raise ReplicaMissing(f"stage {stage.stage_id} {stage.name!r} has no replica that is up")
