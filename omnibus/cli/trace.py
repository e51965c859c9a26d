"""`omnibus trace`: where the time of one request went, and where an open one is."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from omnibus.cli import options
from omnibus.cli.broker_command import broker_command

if TYPE_CHECKING:
    from omnibus.cli.root import CommandSession
    from omnibus.client.request_trace import Span

_WIDTH = 50
_MARKS = {"waited": ".", "ran": "#", "failed": "!", "waiting": ".", "running": "="}


def bar(span: Span, whole: float) -> str:
    """The span as a part of a line that stands for `whole` seconds; a character at the least."""
    first = min(int(span.start / whole * _WIDTH), _WIDTH - 1)
    length = max(round(span.end / whole * _WIDTH) - first, 1)
    return " " * first + _MARKS[span.what] * length


@click.command("trace")
@click.argument("request_id")
@options.as_json
@broker_command("requests")
async def command(session: CommandSession, request_id: str, *, as_json: bool) -> None:
    """Show when each stage of a request waited (.), ran (#) or failed (!), for as long as its record is kept.

    Of an open request the stages where it is are there, too, until now: waiting, or running (=) since they were queued.

    --json prints one object, with seconds since the request was accepted. Exit code 2 when no record has this id.
    """
    from omnibus.cli.request_report import current_position, find_request  # noqa: PLC0415 commands import when they run
    from omnibus.cli.tables import make_table, show  # noqa: PLC0415
    from omnibus.client.request_trace import spans_of  # noqa: PLC0415

    spec, result = await find_request(session, request_id)
    position = await current_position(session, spec, result)
    timings = (*position.timings, *result.timings)
    spans = spans_of(spec, result.created, timings, result.attempts, position.stages, now=time.time())
    if as_json:
        about = {
            "request_id": result.rid,
            "pipeline": spec.name,
            "state": str(result.state),
            "accepted": result.created,
        }
        click.echo(json.dumps({**about, "spans": [asdict(span) for span in spans]}))
        return
    whole = max((span.end for span in spans), default=0.0)
    click.echo(f"request {result.rid} of {spec.name}: {result.state}, {whole:.3f} s")
    rows = [
        (span.stage, span.what, f"{span.start:.3f}", f"{span.end - span.start:.3f}", bar(span, whole or 1.0))
        for span in spans
    ]
    if rows:
        show(make_table(("stage", "", "at s", "took s", "."), rows))
