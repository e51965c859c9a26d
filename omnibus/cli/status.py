"""`omnibus status`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from omnibus.cli import options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from omnibus.broker.connection import Connection
    from omnibus.pipeline.spec import PipelineSpec
    from omnibus.registry.pause_state import PauseState
    from omnibus.registry.presence.replica_record import ReplicaRecord
    from omnibus.registry.presence.replica_view import ReplicaView
    from omnibus.settings import Settings

_EVERY = 1.0
_NO_SYSTEM_ACCOUNT = (
    "no system account that lets us in (OMNIBUS_NATS_SYSTEM_URL): only the heartbeat timeout tells of a lost host"
)
_SYSTEM_DEADLINE = 2.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A pipeline at one moment."""

    spec: PipelineSpec
    replicas: list[ReplicaRecord]
    depths: Mapping[str, int]
    """Messages that wait or are being worked on, by consumer of the work stream."""
    now: float
    system_account: bool = True
    """Whether one is known here and lets us in, as the orchestrators need it to hear of lost connections."""
    pause_states: Mapping[int, PauseState] = field(default_factory=dict)
    """What operators have decided for stages."""

    def queued(self, stage_id: int) -> int:
        """Tasks of a stage on all its lanes, waiting or in hand."""
        return sum(depth for name, depth in self.depths.items() if name.startswith(f"stage-{stage_id}-"))

    def as_json(self) -> dict[str, Any]:
        from omnibus.wire.subjects import EVENTS_CONSUMER  # noqa: PLC0415 commands import when they run

        return {
            "pipeline": self.spec.name,
            "events": self.depths.get(EVENTS_CONSUMER, 0),
            "system_account": self.system_account,
            "stages": [
                {
                    "stage_id": stage.stage_id,
                    "name": stage.name,
                    "engine": stage.engine,
                    "hold": self.pause_states[stage.stage_id].word if stage.stage_id in self.pause_states else None,
                    "queued": self.queued(stage.stage_id),
                    "replicas": [self._replica(one) for one in self.replicas if one.stage_id == stage.stage_id],
                }
                for stage in self.spec.stages
            ],
        }

    def table(self) -> RenderableType:
        """For a terminal: a line a replica."""
        from rich.table import Table  # noqa: PLC0415

        held = [
            f"stage {self.spec.stage(one).name} is {state.word}" for one, state in sorted(self.pause_states.items())
        ]
        caption = "\n".join([*held, *([] if self.system_account else [_NO_SYSTEM_ACCOUNT])]) or None
        table = Table(
            title=self.spec.name, title_justify="left", caption=caption, caption_justify="left", box=None, header_style="bold"
        )  # fmt: skip
        for column in ("stage", "queued", "replica", "status", "busy", "host", "devices", "heartbeat"):
            table.add_column(column, no_wrap=True)
        for stage in self.as_json()["stages"]:
            head = (f"{stage['stage_id']} {stage['name']}", str(stage["queued"]))
            replicas: list[dict[str, Any]] = stage["replicas"]
            for cells in [_cells(replica) for replica in replicas] or [("-", "none")]:
                table.add_row(*head, *cells)
                head = ("", "")
        return table

    def _replica(self, record: ReplicaRecord) -> dict[str, Any]:
        return {
            "replica": record.replica,
            "status": str(record.status),
            "paused": record.paused,
            "slots": record.slots,
            "in_flight": record.in_flight,
            "queue_length": record.queue_length,
            "host": record.host,
            "pid": record.pid,
            "devices": record.devices,
            "heartbeat_age": round(max(0.0, self.now - record.last_heartbeat), 3),
        }


@click.command("status")
@click.argument("rid", required=False)
@options.pipeline
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@options.as_json
@options.nats
@options.state_dir
def command(*, rid: str | None, pipeline: str | None, watch: bool, as_json: bool, **flags: Any) -> None:
    """Show the stages, replicas and queues of a pipeline, or one request by its id."""
    from omnibus.cli.root import ask, load_settings  # noqa: PLC0415

    settings = load_settings(**flags)
    if rid is not None:
        ask(_request(settings, pipeline, rid))
    else:
        ask(_status(settings, pipeline, watch=watch, as_json=as_json))


async def _status(settings: Settings, pipeline: str | None, *, watch: bool, as_json: bool) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    from omnibus.broker.discovery import discover  # noqa: PLC0415
    from omnibus.cli.deployed import find_pipeline  # noqa: PLC0415
    from omnibus.cli.root import connected  # noqa: PLC0415
    from omnibus.registry.presence.replica_view import ReplicaView  # noqa: PLC0415

    console = Console()
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(connected(settings, role="status"))
        spec = await find_pipeline(connection, pipeline)
        view = await stack.enter_async_context(ReplicaView(connection, spec.name, timeout=spec.heartbeat_timeout))
        system_account = await reaches_system_account(discover(settings).system_url)
        live = stack.enter_context(Live(console=console)) if watch and not as_json and console.is_terminal else None
        while True:
            now = await _snapshot(connection, spec, view, system_account=system_account)
            if as_json:
                click.echo(json.dumps(now.as_json()))
            elif live is not None:
                live.update(now.table())
            else:
                console.print(now.table())
            if not watch:
                return
            await asyncio.sleep(_EVERY)


async def reaches_system_account(url: str | None) -> bool:
    """Whether somebody with these settings would hear of lost connections."""
    from omnibus.broker.connection import connect  # noqa: PLC0415
    from omnibus.errors import BrokerUnavailable  # noqa: PLC0415

    if url is None:
        return False
    try:
        async with connect(url, name="status", role="observer", deadline=_SYSTEM_DEADLINE, clock=False):
            return True
    except BrokerUnavailable:
        return False


async def _snapshot(connection: Connection, spec: PipelineSpec, view: ReplicaView, *, system_account: bool) -> Snapshot:
    from omnibus.ledger.work_queue import WorkQueue  # noqa: PLC0415
    from omnibus.registry.pause_state import PauseStates  # noqa: PLC0415

    depths = await WorkQueue(connection, spec.name).depths()
    pause_states = await PauseStates(connection, spec.name).of(stage.stage_id for stage in spec.stages)
    return Snapshot(spec, view.replicas(), depths, time.time(), system_account, pause_states)


async def _request(settings: Settings, pipeline: str | None, rid: str) -> None:
    """One JSON object: there is no better table of one request."""
    from omnibus.cli.answer import describe  # noqa: PLC0415
    from omnibus.cli.deployed import find_pipeline  # noqa: PLC0415
    from omnibus.cli.root import connected  # noqa: PLC0415
    from omnibus.client.producer import Producer  # noqa: PLC0415

    async with connected(settings, role="status") as connection, Producer(connection) as producer:
        spec = await find_pipeline(connection, pipeline)
        click.echo(json.dumps(describe(spec, await producer.result(spec.name, rid)), indent=2))


def _cells(replica: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        replica["replica"],
        f"{replica['status']}{', paused' if replica['paused'] else ''}",
        f"{replica['in_flight']}/{replica['slots']}",
        f"{replica['host']}:{replica['pid']}",
        replica["devices"],
        f"{replica['heartbeat_age']:.1f} s",
    )
