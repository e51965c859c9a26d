"""`omnibus queue`: every lane of every stage, and what waits on it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from omnibus.cli import options
from omnibus.cli.broker_command import broker_command

if TYPE_CHECKING:
    from omnibus.cli.root import CommandSession

_COLUMNS = ("stage", "lane", "waiting", "oldest", "in flight", "redelivered", "pulls", "replicas up")


@click.command("queue")
@options.as_json
@broker_command("queue")
async def command(session: CommandSession, *, as_json: bool) -> None:
    """Show the queue of each lane of each stage: how much waits and since when, what replicas have in hand, and who asks.

    `pulls` are requests of replicas for more: none of them, with tasks that wait, is a stage that is full or that nobody serves.
    `events` wait for orchestrators, `requests` are raw ones that none has admitted yet. --json prints an object a pipeline, each
    on a line.
    """
    from omnibus.cli.cluster_report import PipelineStatuses  # noqa: PLC0415 commands import when they run
    from omnibus.cli.tables import duration, make_table, show  # noqa: PLC0415
    from omnibus.client.activity import lanes_of, stages_of  # noqa: PLC0415
    from omnibus.ledger.work_queue import WorkQueue  # noqa: PLC0415

    async with PipelineStatuses.open(session) as statuses:
        for status in await statuses.statuses(ages=True):
            lanes, raw = lanes_of(status), await WorkQueue(session.connection, status.spec.name).raw_requests()
            up: dict[int | None, int] = {stage.stage_id: stage.up for stage in stages_of(status)}
            if as_json:
                queues = [{**asdict(one), "replicas_up": up.get(one.stage_id)} for one in lanes]
                raw_requests = {"waiting": raw.waiting, "in_flight": raw.running}
                click.echo(json.dumps({"pipeline": status.spec.name, "queues": queues, "raw_requests": raw_requests}))
                continue
            rows = [
                (
                    "-" if one.stage_id is None else f"{one.stage_id} {one.stage}", one.lane, one.waiting,
                    None if one.oldest_seconds is None else duration(one.oldest_seconds),
                    one.in_flight, one.redelivered, one.pulls, up.get(one.stage_id),
                )
                for one in lanes
            ]  # fmt: skip
            rows.append(("-", "requests", raw.waiting, None, raw.running, raw.redelivered, raw.pulls, None))
            show(make_table(_COLUMNS, rows, title=status.spec.name))
