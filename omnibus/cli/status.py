"""`omnibus status`: pipelines with their stages, replicas and queues, or one request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import click

from omnibus.cli import options
from omnibus.cli.broker_command import CommandSession, broker_command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from omnibus.client.cluster_view import ClusterView, PipelineStatus
    from omnibus.pipeline.spec import PipelineSpec

_EVERY = 1.0
_NO_SYSTEM_ACCOUNT = (
    "no system account that lets us in (OMNIBUS_NATS_SYSTEM_URL): only the heartbeat timeout tells of a lost host"
)
_COLUMNS = ("stage", "queued", "running", "replica", "status", "busy", "host", "devices", "heartbeat")


@click.command("status")
@click.argument("request_id", required=False)
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@options.as_json
@broker_command("status")
async def command(session: CommandSession, request_id: str | None, *, watch: bool, as_json: bool) -> None:
    """Show the stages, replicas and queues of all pipelines (or of one: --pipeline), or a request by its id.

    A task is queued while it waits, and running once a replica has it. --json prints an object a pipeline, each on a line.
    """
    from omnibus.broker.discovery import discover  # noqa: PLC0415 commands import when they run
    from omnibus.cli.request_report import RequestStatuses  # noqa: PLC0415
    from omnibus.cli.tables import Screen  # noqa: PLC0415
    from omnibus.client.cluster_view import ClusterView, reaches_system_account  # noqa: PLC0415

    async with AsyncExitStack() as stack:
        statuses: RequestStatuses | _PipelineStatuses
        if request_id is not None:
            statuses = await RequestStatuses.find(session, request_id)
        else:
            system_account = await reaches_system_account(discover(session.settings))
            cluster = await stack.enter_async_context(ClusterView(session.connection))
            statuses = _PipelineStatuses(session, cluster, system_account=system_account)
        screen = stack.enter_context(Screen(live=watch and not as_json))
        while True:
            objects, renderable = await statuses.read()
            if as_json:
                click.echo("\n".join(json.dumps(one) for one in objects))
            else:
                screen.show(renderable)
            if not watch or statuses.ended:
                return
            await asyncio.sleep(_EVERY)


class _PipelineStatuses:
    """The statuses of all deployed pipelines, or of the one that was named."""

    ended = False

    def __init__(self, session: CommandSession, cluster: ClusterView, *, system_account: bool) -> None:
        self._session, self._cluster, self._system_account = session, cluster, system_account

    async def read(self) -> tuple[list[dict[str, Any]], RenderableType]:
        """As JSON, and for the screen."""
        from rich.console import Group  # noqa: PLC0415

        statuses = [
            await self._cluster.status(spec, system_account=self._system_account) for spec in await self._specs()
        ]
        renderables: list[RenderableType] = []
        for status in sorted(statuses, key=lambda status: not status.served):
            renderables += ["", *describe_pipeline(status)] if renderables else describe_pipeline(status)
        if not self._system_account:
            renderables.append(f"[dim]{_NO_SYSTEM_ACCOUNT}[/]")
        return [status.as_json() for status in statuses], Group(*renderables)

    async def _specs(self) -> Sequence[PipelineSpec]:
        if self._session.wanted is None and (found := await self._cluster.all()):
            return found
        return [await self._session.spec()]  # which says what to do when there is none


def describe_pipeline(status: PipelineStatus) -> list[RenderableType]:
    """A table with a line a replica, and what else there is to say."""
    from omnibus.cli.tables import make_table  # noqa: PLC0415

    name, rows = status.spec.name, []
    if not status.served:
        waiting = sum(status.depth(stage.stage_id).total for stage in status.spec.stages)
        todo = f"omnibus serve starts it, omnibus pipeline delete {name} removes it"
        return [f"[bold]{name}[/]: deployed and not served, {waiting} tasks wait; {todo}"]
    for stage in status.as_json()["stages"]:
        head = [f"{stage['stage_id']} {stage['name']}", stage["queued"], stage["running"]]
        for replica in stage["replicas"] or [None]:
            rows.append([*head, *(_cells(replica) if replica is not None else (None, "no replica", *[None] * 4))])
            head = ["", "", ""]
    held = [
        f"stage {status.spec.stage(one).name} is {state.word}" for one, state in sorted(status.pause_states.items())
    ]
    return [make_table(_COLUMNS, rows, title=name), *held]


def _cells(replica: dict[str, Any]) -> tuple[str, ...]:
    return (
        replica["replica"],
        f"{replica['status']}{', paused' if replica['paused'] else ''}{': ' if replica['reason'] else ''}{replica['reason']}",
        f"{replica['in_flight']}/{replica['slots']}",
        f"{replica['host']}:{replica['pid']}",
        replica["devices"] or "-",
        f"{replica['heartbeat_age']:.1f} s",
    )
