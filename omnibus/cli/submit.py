"""`omnibus submit`."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omnibus.cli import options
from omnibus.cli.streams import OutputLost, read_stdin

if TYPE_CHECKING:
    from omnibus.cli.answer import Answer
    from omnibus.client.producer import Producer
    from omnibus.client.request_events import Result
    from omnibus.pipeline.spec import PipelineSpec
    from omnibus.settings import Settings
    from omnibus.wire.request import Lane, Request

EXIT_CODES = {"done": 0, "failed": 1, "cancelled": 3, "expired": 4}
_BEYOND_DEADLINE = 1.0
"""Seconds after a request's deadline in which its end is told; then it is said here, whoever ends it when."""
_CANCEL_DEADLINE = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arguments:
    """What the command line asks for."""

    prompt: str
    modalities: str | None
    request_id: str | None
    deadline: float | None
    lane: Lane
    seed: int | None
    stream: bool
    out: Path
    as_json: bool


@click.command("submit")
@click.argument("prompt")
@options.pipeline
@options.nats
@options.state_dir
@click.option("--modalities", "-m", metavar="LIST", help="Outputs wanted, such as text,image; by default all.")
@click.option("--out", "-o", default="out", type=click.Path(file_okay=False, path_type=Path), show_default=True,
              help="Where images and audio are saved.")  # fmt: skip
@options.as_json
@options.request_id
@click.option("--deadline", type=float, metavar="SECONDS", help="How long the request may take.")
@click.option("--lane", type=click.Choice(["interactive", "batch"]), default="interactive", show_default=True,
              help="Which queue of each stage.")  # fmt: skip
@click.option("--seed", type=int, help="Seed of every stage that draws random numbers.")
@click.option("--no-stream", "stream", flag_value=False, default=True, help="Show the text only when it is whole.")
def command(pipeline: str | None, nats_url: str | None, state_dir: Path | None, **arguments: Any) -> int:
    """Send PROMPT to a pipeline: stream its text, save its images and audio.

    PROMPT "-" is read from stdin. Exit code 0 when the request is done, 1 failed, 2 refused, 3 cancelled, 4 expired.
    Ctrl-C cancels the request.
    """
    from omnibus.cli.root import ask, load_settings  # noqa: PLC0415 commands import when they run
    from omnibus.errors import DeadlineExceeded  # noqa: PLC0415

    settings = load_settings(nats_url=nats_url, state_dir=state_dir)
    try:
        return ask(_submit(settings, pipeline, _Arguments(**arguments)))
    except DeadlineExceeded as error:
        click.echo(f"omnibus: {error.message}", err=True)
        return EXIT_CODES["expired"]


async def _submit(settings: Settings, pipeline: str | None, arguments: _Arguments) -> int:
    from omnibus.cli.answer import Answer  # noqa: PLC0415
    from omnibus.cli.deployed import find_pipeline  # noqa: PLC0415
    from omnibus.cli.root import connected  # noqa: PLC0415
    from omnibus.client.producer import Producer  # noqa: PLC0415

    _check_folder(arguments.out)
    async with connected(settings, role="submit") as connection:
        spec = await find_pipeline(connection, pipeline)
        async with Producer(connection) as producer:
            with Answer(spec, arguments.out, quiet=arguments.as_json) as answer:
                result = await _follow(producer, spec, arguments, answer)
        return _report(result, answer, arguments)


def _check_folder(folder: Path) -> None:
    """Raises BadParameter when nothing can be saved there, before the request is run for it."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise click.BadParameter(f"nothing can be saved under {str(folder)!r}", param_hint="--out")


async def _follow(producer: Producer, spec: PipelineSpec, arguments: _Arguments, answer: Answer) -> Result:
    from omnibus.client.request_events import Ended  # noqa: PLC0415
    from omnibus.errors import DeadlineExceeded, OmnibusError, UnknownRequest  # noqa: PLC0415

    rid = (
        arguments.request_id if arguments.request_id is not None else uuid.uuid4().hex
    )  # known before it is accepted: Ctrl-C may come in the middle of that
    try:
        submission = await producer.submit(spec, _request(spec, arguments), rid=rid)
        timeout = submission.time_left + _BEYOND_DEADLINE
        async with asyncio.timeout(timeout), aclosing(submission.events()) as events:
            async for event in events:
                answer.show(event)
                if isinstance(event, Ended):
                    return event.result
    except TimeoutError as error:
        raise DeadlineExceeded(f"request {rid!r} has not ended by its deadline: no orchestrator runs") from error
    except (asyncio.CancelledError, OutputLost):  # nobody waits for it any more
        with suppress(TimeoutError, OmnibusError):  # it was not accepted, or its deadline ends it
            async with asyncio.timeout(_CANCEL_DEADLINE):
                await producer.cancel(spec.name, rid)
        raise
    raise UnknownRequest(f"request {rid!r} is no longer in the ledger")


def _request(spec: PipelineSpec, arguments: _Arguments) -> Request:
    from omnibus.frontdoor.stage_params import stage_params  # noqa: PLC0415
    from omnibus.wire.request import Request  # noqa: PLC0415

    prompt = read_stdin() if arguments.prompt == "-" else arguments.prompt
    modalities = tuple(arguments.modalities.split(",")) if arguments.modalities else None
    return Request(
        prompt=prompt,
        modalities=modalities,
        sampling_params=stage_params(spec, modalities, seed=arguments.seed),
        stream=arguments.stream,
        deadline=arguments.deadline,
        lane=arguments.lane,
    )


def _report(result: Result, answer: Answer, arguments: _Arguments) -> int:
    if arguments.as_json:
        click.echo(json.dumps(answer.as_json(result)))
    elif result.failure is not None:
        click.echo(
            f"omnibus: {result.state}: {result.failure.message} ({result.failure.code}, request {result.rid})", err=True
        )
    return EXIT_CODES[str(result.state)]
