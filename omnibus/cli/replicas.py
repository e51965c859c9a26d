"""`omnibus replicas`: the replicas one by one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from omnibus.cli import options
from omnibus.cli.broker_command import broker_command

if TYPE_CHECKING:
    from omnibus.cli.root import CommandSession
    from omnibus.pipeline.spec import PipelineSpec
    from omnibus.registry.presence.replica_record import ReplicaRecord

_COLUMNS = ("replica", "status", "busy", "waits in it", "host", "devices", "up since", "heartbeat")
refs = click.argument("refs", metavar="STAGE[.REPLICA]...", nargs=-1, required=True)


@click.group("replicas")
def command() -> None:
    """List replicas, drain single ones, have them take tasks again, or restart them."""


@command.command("list")
@click.option("--stage", metavar="ID|NAME", help="Of one stage alone.")
@options.as_json
@broker_command("status")
async def list_replicas(session: CommandSession, *, stage: str | None, as_json: bool) -> None:
    """List the replicas of a pipeline under the names that the other commands here take. --json prints an array."""
    import time  # noqa: PLC0415 commands import when they run

    import msgspec  # noqa: PLC0415

    from omnibus.cli.tables import clock, make_table, show  # noqa: PLC0415
    from omnibus.registry.presence.replica_record import read_replicas  # noqa: PLC0415

    spec = await session.spec()
    wanted = None if stage is None else spec.stage(stage).stage_id
    found = [one for one in await read_replicas(session.connection, spec.name) if wanted in (None, one.stage_id)]
    if as_json:
        shown = [{"name": _ref(spec, one), **msgspec.to_builtins(one)} for one in found]
        click.echo(
            json.dumps([{name: its for name, its in one.items() if name not in ("v", "claims")} for one in shown])
        )
        return
    rows = [
        (
            _ref(spec, one), f"{one.status}{', paused' if one.paused else ''}{f': {one.reason}' if one.reason else ''}",
            f"{one.in_flight}/{one.slots}", one.queue_length, f"{one.host}:{one.pid}", one.devices or None,
            clock(one.registered_at), f"{max(time.time() - one.last_heartbeat, 0.0):.1f} s",
        )
        for one in found
    ]  # fmt: skip
    show(make_table(_COLUMNS, rows, title=spec.name)) if rows else click.echo("no replicas")


@command.command()
@refs
@click.option("--end", is_flag=True, help="And end for good: its worker does not start it again.")
@options.restart_timeout
@broker_command("replicas")
async def drain(session: CommandSession, refs: tuple[str, ...], *, end: bool, timeout: float) -> None:
    """Have replicas take no more tasks and finish those in hand, all at the same time.

    They stay drained until `omnibus replicas resume`, or until their stage is resumed: what their worker starts in their place
    is drained, too. With --end they end for good: another `omnibus worker`, or their own command started anew, brings them
    back; an autoscaler counts one less in --min and --max for each. Tasks wait for other replicas, or for these. Exit code 1
    when one is not done in time: it goes on with it.
    """
    import asyncio  # noqa: PLC0415 commands import when they run

    from omnibus.client.draining import drain_replica, end_replica  # noqa: PLC0415

    spec, found = await _chosen(session, refs)
    act, word = (end_replica, "ended") if end else (drain_replica, "drained")

    async def one(record: ReplicaRecord) -> None:
        await act(session.connection, spec, record, timeout=timeout)
        click.echo(f"{_ref(spec, record)}: {word}")

    async with asyncio.TaskGroup() as group:
        for record in found:
            group.create_task(one(record), name=f"drain-{record.replica}")


@command.command()
@refs
@broker_command("replicas")
async def resume(session: CommandSession, refs: tuple[str, ...]) -> None:
    """Have drained replicas take tasks again."""
    from omnibus.client.draining import resume_replica  # noqa: PLC0415 commands import when they run

    spec, found = await _chosen(session, refs)
    for record in found:
        await resume_replica(session.connection, spec, record)
        click.echo(f"{_ref(spec, record)}: up")


@command.command()
@refs
@options.restart_timeout
@broker_command("restart")
async def restart(session: CommandSession, refs: tuple[str, ...], *, timeout: float) -> None:
    """Restart these replicas one after the other, as `omnibus restart` does with all of a stage."""
    from omnibus.client.rolling_restart import restart_replicas  # noqa: PLC0415 commands import when they run

    spec, found = await _chosen(session, refs)
    for stage_id in dict.fromkeys(one.stage_id for one in found):
        only = {one.replica for one in found if one.stage_id == stage_id}
        await restart_replicas(session.connection, spec, stage_id, timeout=timeout, say=click.echo, only=only)


async def _chosen(session: CommandSession, refs: tuple[str, ...]) -> tuple[PipelineSpec, list[ReplicaRecord]]:
    from omnibus.client.draining import chosen  # noqa: PLC0415
    from omnibus.registry.presence.replica_record import read_replicas  # noqa: PLC0415

    spec = await session.spec()
    return spec, chosen(spec, await read_replicas(session.connection, spec.name), refs)


def _ref(spec: PipelineSpec, record: ReplicaRecord) -> str:
    return f"{spec.stage_name(record.stage_id)}.{record.replica}"
