"""`omnibus restart`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from omnibus.cli import options
from omnibus.cli.broker_command import broker_command

if TYPE_CHECKING:
    from omnibus.cli.root import CommandSession


@click.command("restart")
@click.option("--stage", metavar="ID|NAME", help="Which stage.")
@click.option("--all", "every", is_flag=True, help="All stages, one after the other.")
@options.restart_timeout
@broker_command("restart")
async def command(session: CommandSession, *, stage: str | None, every: bool, timeout: float) -> None:
    """Restart the replicas of a stage, one after the other, while requests flow.

    Each finishes its tasks, or hands them back after the grace period of its worker, ends, is started again by its worker and
    is up before the next one leaves. Exit code 1 when one does not come back; those after it stay as they are.
    """
    from omnibus.client.rolling_restart import restart_replicas  # noqa: PLC0415 commands import when they run
    from omnibus.errors import ReplicaMissing  # noqa: PLC0415

    if every == (stage is not None):
        raise click.UsageError("give --stage or --all")
    spec = await session.spec()
    for one in spec.stages if stage is None else (spec.stage(stage),):
        count = await restart_replicas(session.connection, spec, one.stage_id, timeout=timeout, say=click.echo)
        if count == 0:
            raise ReplicaMissing(f"stage {one.stage_id} {one.name!r} has no replica that is up")
