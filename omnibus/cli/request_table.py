"""`omnibus requests`: which requests there are, and how they stand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from omnibus.cli import options
from omnibus.cli.broker_command import broker_command

if TYPE_CHECKING:
    from omnibus.cli.root import CommandSession
    from omnibus.client.request_list import RequestFilter
    from omnibus.pipeline.spec import PipelineSpec

_COLUMNS = ("request id", "state", "accepted", "age", "tenant", "lane", "at", "code", "message")
_STATES = ("open", "done", "failed", "cancelled", "expired")


@click.command("requests")
@click.option("--open", "is_open", is_flag=True, help="Those that have not ended: as --state open.")
@click.option("--failed", "is_failed", is_flag=True, help="Those that failed: as --state failed.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(_STATES), help="Those in this state; may be repeated."
)
@click.option("--stage", metavar="ID|NAME", help="Open ones at this stage, and those that failed there.")
@click.option("--tenant", metavar="NAME", help="Those of one tenant.")
@click.option("--older", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="Accepted longer ago.")
@click.option("--newer", type=click.FloatRange(min=0), metavar="SECONDS", help="Accepted since.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, metavar="N", help="The newest N of them."
)
@options.as_json
@broker_command("requests")
async def command(session: CommandSession, *, limit: int, as_json: bool, **filters: Any) -> None:
    """List the requests of a pipeline, the newest first: open ones, and for 15 minutes those that have ended.

    `at` are the stages where an open request waits or runs. Reads every record, so it is no probe. --json prints an object a
    request, each on a line.
    """
    from omnibus.cli.tables import clock, duration, make_table, show  # noqa: PLC0415 commands import when they run
    from omnibus.client.request_list import list_requests  # noqa: PLC0415

    spec = await session.spec()
    found, count = await list_requests(session.connection, spec, _wanted(spec, **filters), limit=limit)
    now = session.connection.clock.now()
    objects = [one.as_json(spec, now) for one in found]
    if as_json:
        for one in objects:
            click.echo(json.dumps(one))
        return
    rows = [
        (
            one["request_id"], one["state"], clock(one["created"]), duration(one["age"]), one["tenant"], one["lane"],
            ", ".join(one["at"]) or one["failed_at"], one["code"], one["message"],
        )
        for one in objects
    ]  # fmt: skip
    show(make_table(_COLUMNS, rows)) if rows else click.echo("no such requests")
    if count > len(found):
        click.echo(f"and {count - len(found)} older ones: --limit shows more")


def _wanted(spec: PipelineSpec, *, stage: str | None, states: tuple[str, ...], **given: Any) -> RequestFilter:
    from omnibus.client.request_list import RequestFilter  # noqa: PLC0415
    from omnibus.requests.state import RequestState  # noqa: PLC0415

    flagged = [name for name, flag in (("open", "is_open"), ("failed", "is_failed")) if given[flag]]
    return RequestFilter(
        states=[RequestState(one) for one in (*states, *flagged)],
        stage_id=None if stage is None else spec.stage(stage).stage_id,
        tenant=given["tenant"], older_than=given["older"], newer_than=given["newer"],
    )  # fmt: skip
