"""`omnibus trace`: where the time of one request went, from its record alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from omnibus.cli import options
from omnibus.cli.broker_command import broker_command

if TYPE_CHECKING:
    from omnibus.cli.root import CommandSession
    from omnibus.client.request_events import Result
    from omnibus.pipeline.spec import PipelineSpec

_WIDTH = 50
_MARKS = {"waited": ".", "ran": "#", "failed": "!"}


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a request's life, in seconds since it was accepted; a failed attempt is a moment."""

    stage: str
    what: str
    start: float
    end: float

    def bar(self, whole: float) -> str:
        """The span as a part of a line that stands for `whole` seconds; a character at the least."""
        first = min(int(self.start / whole * _WIDTH), _WIDTH - 1)
        length = max(round(self.end / whole * _WIDTH) - first, 1)
        return " " * first + _MARKS[self.what] * length


def spans_of(spec: PipelineSpec, result: Result) -> list[Span]:
    """The waits and runs of a request's stages, and the attempts that failed, in the order of their beginnings."""
    found = []
    for timing in result.timings:
        name, queued = spec.stage_name(timing.stage_id), max(timing.queued - result.created, 0.0)
        waited, ran = timing.seconds
        found.append(Span(name, "waited", queued, queued + waited))
        found.append(Span(name, "ran", queued + waited, queued + waited + ran))
    for attempt in result.attempts:
        at = max(attempt.at - result.created, 0.0)
        found.append(Span(spec.stage_name(attempt.stage_id), "failed", at, at))
    return sorted(found, key=lambda span: (span.start, span.end))


@click.command("trace")
@click.argument("request_id")
@options.as_json
@broker_command("status")
async def command(session: CommandSession, request_id: str, *, as_json: bool) -> None:
    """Show when each stage of a request waited (.), ran (#) or failed (!), for as long as its record is kept.

    --json prints one object, with seconds since the request was accepted. Exit code 2 when no record has this id.
    """
    from omnibus.cli.request_report import find_request  # noqa: PLC0415 commands import when they run
    from omnibus.cli.tables import make_table, show  # noqa: PLC0415

    spec, result = await find_request(session, request_id)
    spans = spans_of(spec, result)
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
        (span.stage, span.what, f"{span.start:.3f}", f"{span.end - span.start:.3f}", span.bar(whole or 1.0))
        for span in spans
    ]
    if rows:
        show(make_table(("stage", "", "at s", "took s", "."), rows))
