"""`omnibus status`: pipelines with their stages, replicas and queues, or one request."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import click

from omnibus.cli import options
from omnibus.cli.broker_command import broker_command

if TYPE_CHECKING:
    from omnibus.cli.root import CommandSession

_EVERY = 1.0


def _role(request_id: str | None, **_: Any) -> str:
    """The credentials' role: an observer sees no requests."""
    return "status" if request_id is None else "requests"


@click.command("status")
@click.argument("request_id", required=False)
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@options.as_json
@broker_command(_role)
async def command(session: CommandSession, request_id: str | None, *, watch: bool, as_json: bool) -> None:
    """Show the stages, replicas and queues of all pipelines (or of one: --pipeline), or a request by its id.

    A task is queued while it waits, and running once a replica has it. --json prints an object a pipeline, each on a line.
    """
    from rich.console import Console  # noqa: PLC0415 commands import when they run
    from rich.live import Live  # noqa: PLC0415

    from omnibus.cli.cluster_report import PipelineStatuses  # noqa: PLC0415
    from omnibus.cli.request_report import RequestStatuses  # noqa: PLC0415
    from omnibus.cli.tables import show  # noqa: PLC0415

    async with AsyncExitStack() as stack:
        statuses: RequestStatuses | PipelineStatuses
        if request_id is not None:
            statuses = await RequestStatuses.find(session, request_id)
        else:
            statuses = await stack.enter_async_context(PipelineStatuses.open(session))
        live = None
        if watch and not as_json and sys.stdout.isatty():
            live = stack.enter_context(Live(console=Console(highlight=False), auto_refresh=False))
        while True:
            objects, renderable = await statuses.read()
            if as_json:
                click.echo("\n".join(json.dumps(one) for one in objects))
            elif live is None:
                show(renderable)
            else:
                live.update(renderable, refresh=True)
            if not watch or statuses.ended:
                return
            await asyncio.sleep(_EVERY)
