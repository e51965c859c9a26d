"""Pipelines on the screen: a table with a line a replica for each, and what else there is to say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.console import Group, RenderableType

from omnibus.broker.discovery import discover
from omnibus.cli.root import CommandSession
from omnibus.cli.tables import make_table
from omnibus.client.cluster_view import ClusterView, PipelineStatus, reaches_system_account
from omnibus.pipeline.spec import PipelineSpec

_NO_SYSTEM_ACCOUNT = (
    "no system account that lets us in (OMNIBUS_NATS_SYSTEM_URL): only the heartbeat timeout tells of a lost host"
)
_COLUMNS = ("stage", "queued", "running", "replica", "status", "busy", "host", "devices", "library", "heartbeat")


@dataclass(frozen=True, slots=True)
class PipelineStatuses:
    """The statuses of all deployed pipelines, or of the one that was named."""

    session: CommandSession
    cluster: ClusterView
    system_account: bool
    ended: ClassVar[bool] = False

    @classmethod
    @asynccontextmanager
    async def open(cls, session: CommandSession) -> AsyncIterator[PipelineStatuses]:
        """Views of the replicas stay open as long as the context."""
        system_account = await reaches_system_account(discover(session.settings))
        async with ClusterView(session.connection) as cluster:
            yield cls(session, cluster, system_account)

    async def read(self) -> tuple[list[dict[str, Any]], RenderableType]:
        """As JSON, and for the screen."""
        statuses = await self.statuses()
        renderables: list[RenderableType] = []
        for status in sorted(statuses, key=lambda status: not status.served):
            renderables += ["", *describe_pipeline(status)] if renderables else describe_pipeline(status)
        if not self.system_account:
            renderables.append(f"[dim]{_NO_SYSTEM_ACCOUNT}[/]")
        return [status.as_json() for status in statuses], Group(*renderables)

    async def statuses(self, *, ages: bool = False) -> list[PipelineStatus]:
        """The statuses now; see `ClusterView.status`."""
        known = self.system_account
        return [await self.cluster.status(spec, system_account=known, ages=ages) for spec in await self._specs()]

    async def _specs(self) -> Sequence[PipelineSpec]:
        if self.session.wanted is None and (found := await self.cluster.all()):
            return found
        return [await self.session.spec()]  # which says what to do when there is none


def describe_pipeline(status: PipelineStatus) -> list[RenderableType]:
    """A table with a line a replica, and what else there is to say."""
    name, rows = status.spec.name, []
    if not status.served:
        waiting = sum(status.depth(stage.stage_id).total for stage in status.spec.stages)
        tasks = "1 task waits" if waiting == 1 else f"{waiting} tasks wait"
        todo = f"omnibus serve starts it, omnibus pipeline delete {name} removes it"
        return [f"[bold]{name}[/]: deployed and not served, {tasks}; {todo}"]
    for stage in status.as_json()["stages"]:
        head = [f"{stage['stage_id']} {stage['name']}", stage["queued"], stage["running"]]
        for replica in stage["replicas"] or [None]:
            rows.append([*head, *(_cells(replica) if replica is not None else (None, "no replica", *[None] * 5))])
            head = ["", "", ""]
    paused = [
        f"stage {status.spec.stage(one).name} is {state.word}" for one, state in sorted(status.pause_states.items())
    ]
    return [make_table(_COLUMNS, rows, title=name), *paused]


def _cells(replica: dict[str, Any]) -> tuple[str, ...]:
    return (
        replica["replica"],
        f"{replica['status']}{', paused' if replica['paused'] else ''}{': ' if replica['reason'] else ''}{replica['reason']}",
        f"{replica['in_flight']}/{replica['slots']}",
        f"{replica['host']}:{replica['pid']}",
        replica["devices"] or "-",
        _library(replica["versions"]),
        f"{replica['heartbeat_age']:.1f} s",
    )


def _library(versions: dict[str, str]) -> str:
    """The first one of the engine's own, with its version."""
    return next((f"{name} {its}" for name, its in versions.items() if name not in ("omnibus", "python")), "-")
