"""`omnibus top`: what every stage and replica does now, again and again."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import click

from omnibus.cli import options
from omnibus.cli.broker_command import broker_command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from omnibus.cli.root import CommandSession
    from omnibus.client.cluster_view import PipelineStatus

_STAGES = ("stage", "waiting", "oldest", "in flight", "taken/s", "busy", "replicas")
_REPLICAS = ("stage", "replica", "status", "busy", "waits in it", "host", "devices", "heartbeat")
_FEWEST = 3
"""Replicas that are shown however low the terminal is."""


@click.command("top")
@click.option(
    "--every", type=click.FloatRange(min=0.1), default=1.0, show_default=True, metavar="SECONDS", help="How often."
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after so many; without it, with Ctrl-C.")
@options.as_json
@broker_command("queue")
async def command(session: CommandSession, *, every: float, count: int | None, as_json: bool) -> None:
    """Show what stages and replicas do, the busiest replicas first, live until Ctrl-C.

    Piped, and with --json, each look is printed below the one before; --json prints an object a pipeline, each on a line.
    """
    from rich.console import Console, Group  # noqa: PLC0415 commands import when they run
    from rich.live import Live  # noqa: PLC0415

    from omnibus.cli.cluster_report import PipelineStatuses  # noqa: PLC0415
    from omnibus.cli.tables import show  # noqa: PLC0415
    from omnibus.client.activity import activity_json  # noqa: PLC0415

    before: dict[str, PipelineStatus] = {}
    async with AsyncExitStack() as stack:
        statuses = await stack.enter_async_context(PipelineStatuses.open(session))
        console, live = Console(highlight=False), None
        if sys.stdout.isatty() and not as_json:
            live = stack.enter_context(Live(console=console, auto_refresh=False, screen=count is None))
        for number in itertools.count(1):
            found = await statuses.statuses(ages=True)
            if as_json:
                click.echo("\n".join(json.dumps(activity_json(one, before.get(one.spec.name))) for one in found))
            else:
                height = console.height // max(len(found), 1) if live is not None else None
                shown = Group(
                    *itertools.chain.from_iterable(_tables(one, before.get(one.spec.name), height) for one in found)
                )
                show(shown) if live is None else live.update(shown, refresh=True)
            before = {one.spec.name: one for one in found}
            if number == count:
                return
            await asyncio.sleep(every)


def _tables(status: PipelineStatus, before: PipelineStatus | None, height: int | None) -> list[RenderableType]:
    """A table of the stages, and one of as many replicas as `height` lines leave room for."""
    from omnibus.cli.tables import duration, make_table  # noqa: PLC0415
    from omnibus.client.activity import by_load, stages_of  # noqa: PLC0415

    stages = [
        (
            f"{one.stage_id} {one.stage}", one.waiting, None if one.oldest_seconds is None else duration(one.oldest_seconds),
            one.in_flight, one.taken_rate, f"{one.busy}/{one.slots}", f"{one.up} up of {one.replicas}",
        )
        for one in stages_of(status, before)
    ]  # fmt: skip
    alive = by_load(status.replicas)
    most = len(alive) if height is None else max(height - len(stages) - 5, _FEWEST)
    replicas = [
        (
            f"{one.stage_id} {status.spec.stage_name(one.stage_id)}", one.replica,
            f"{one.status}{', paused' if one.paused else ''}", f"{one.in_flight}/{one.slots}", one.queue_length,
            f"{one.host}:{one.pid}", one.devices or None, f"{max(status.now - one.last_heartbeat, 0.0):.1f} s",
        )
        for one in alive[:most]
    ]  # fmt: skip
    rest = [f"[dim]and {len(alive) - most} more[/]"] if len(alive) > most else []
    return [make_table(_STAGES, stages, title=status.spec.name), make_table(_REPLICAS, replicas), *rest, ""]
