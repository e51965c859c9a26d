"""`omnibus submit`."""

from __future__ import annotations

import asyncio
import functools
import json
import uuid
from collections.abc import Callable
from contextlib import aclosing, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omnibus.cli import options
from omnibus.cli.broker_command import broker_command
from omnibus.cli.request_flags import RequestFlags, request_options
from omnibus.cli.streams import OutputLost, read_stdin

if TYPE_CHECKING:
    from omnibus.cli.answer import AnswerDisplay
    from omnibus.cli.root import CommandSession
    from omnibus.client.producer import Producer
    from omnibus.client.request_events import Result
    from omnibus.pipeline.spec import PipelineSpec
    from omnibus.wire.request import Request

EXIT_CODES = {"done": 0, "failed": 1, "cancelled": 3, "expired": 4}
_CANCEL_DEADLINE = 5.0


def _read_prompt(_context: click.Context, _parameter: click.Parameter, words: tuple[str, ...]) -> str:
    if len(words) > 1:
        raise click.UsageError(f'PROMPT is one argument: put it in quotes, as in omnibus submit "{" ".join(words)}"')
    return read_stdin() if words[0] == "-" else words[0]


@click.command("submit")
@click.argument("prompt", nargs=-1, required=True, metavar="PROMPT", callback=_read_prompt)
@request_options
@options.as_json
@options.request_id
@click.option("--complete", is_flag=True, help="Have the model go on with PROMPT as it is, without its chat template.")
@click.option("--no-stream", "stream", flag_value=False, default=True, help="Show the text only when it is whole.")
@broker_command("submit")
async def command(
    session: CommandSession, prompt: str, *, request_id: str | None, as_json: bool, out: Path, **flags: Any
) -> int:
    """Send PROMPT to a pipeline: stream its text, save its images, videos and sound.

    PROMPT "-" is read from stdin. Exit code 0 when the request is done, 1 failed, 2 refused, 3 cancelled, 4 expired.
    Ctrl-C cancels the request.
    """
    from omnibus.cli.answer import AnswerDisplay  # noqa: PLC0415 commands import when they run
    from omnibus.errors import DeadlineExceeded  # noqa: PLC0415

    spec = await session.spec()
    request = RequestFlags(**flags).request(spec, prompt)
    with closing(AnswerDisplay(spec, out, quiet=as_json)) as answer:
        try:
            say = functools.partial(click.echo, err=True)
            result = await follow(session.producer, spec, request, answer, request_id=request_id, on_cancel=say)
        except DeadlineExceeded as error:
            click.echo(f"omnibus: {error.message}", err=True)
            return EXIT_CODES["expired"]
    if as_json:
        click.echo(json.dumps(answer.as_json(result)))
    elif result.failure is not None:
        click.echo(f"omnibus: {failure_of(result, spec)}", err=True)
    return EXIT_CODES[str(result.state)]


async def follow(
    producer: Producer, spec: PipelineSpec, request: Request, answer: AnswerDisplay, *,
    request_id: str | None = None, on_cancel: Callable[[str], None] | None = None,
) -> Result:  # fmt: skip
    """Submit a request and show it until it has ended. Cancelled, it cancels the request and tells `on_cancel` of it.

    Raises DeadlineExceeded when nobody has ended it by its deadline, as `Producer.submit`, and ConfigError, before the request
    is sent, where its files could not be saved.
    """
    from omnibus.cli.waiting_report import WaitingReport  # noqa: PLC0415
    from omnibus.client.request_events import Ended  # noqa: PLC0415
    from omnibus.errors import DeadlineExceeded  # noqa: PLC0415
    from omnibus.pipeline.routing import plan_route  # noqa: PLC0415

    answer.check_folder(str(stage.final) for stage in plan_route(spec, request.modalities).finals)
    rid = request_id if request_id is not None else uuid.uuid4().hex  # known before Ctrl-C may come in between
    try:
        submission = await producer.submit(spec, request, rid=rid)
        report = WaitingReport(producer, spec, request, rid, answer.say)
        reporting = asyncio.create_task(report.run(), name=f"report-{rid}")
        try:
            async with asyncio.timeout(submission.timeout), aclosing(submission.events()) as events:
                async for event in events:
                    report.take(event)
                    answer.show(event)
                    if isinstance(event, Ended):
                        return event.result
        finally:
            reporting.cancel()
    except TimeoutError as error:
        raise DeadlineExceeded(f"request {rid!r} has not ended by its deadline: no orchestrator runs") from error
    except (asyncio.CancelledError, OutputLost) as error:  # nobody waits for it any more
        outcome = await _cancel(producer, spec, rid)
        if on_cancel is not None and not isinstance(error, OutputLost):
            on_cancel(outcome)
        raise
    raise AssertionError("the last event of a request is Ended")


async def _cancel(producer: Producer, spec: PipelineSpec, rid: str) -> str:
    """Cancel a request that nobody waits for any more, and say what has become of it."""
    from omnibus.errors import OmnibusError, UnknownRequest  # noqa: PLC0415

    try:
        async with asyncio.timeout(_CANCEL_DEADLINE):
            return f"request {rid} is {(await producer.cancel(spec.name, rid)).state}"
    except UnknownRequest:
        return f"request {rid} was not accepted yet: nothing runs"
    except (TimeoutError, OmnibusError):
        return f"request {rid} may still run, until its deadline: omnibus cancel {rid} stops it"


def failure_of(result: Result, spec: PipelineSpec) -> str:
    """Why a request has not ended well, in one line, with the stage that it failed in."""
    failure = result.failure
    assert failure is not None, "only of one that failed"
    stage = f"stage {spec.stage_name(failure.stage_id)!r}" if failure.stage_id is not None else ""
    where = "" if stage in failure.message else f"{stage}: "
    return f"{result.state}: {where}{failure.message} ({failure.code}, request {result.rid})"
