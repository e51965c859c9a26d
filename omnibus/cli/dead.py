"""`omnibus dead`: requests whose attempts were used up."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from omnibus.cli import options

if TYPE_CHECKING:
    from omnibus.client.dead_letter_admin import DeadLetterAdmin
    from omnibus.client.producer import Producer
    from omnibus.pipeline.spec import PipelineSpec
    from omnibus.requests.record import DeadLetter

T = TypeVar("T")
_AT_ONCE = 16
"""Letters that are retried or dropped at the same time."""
_HEAD = ("request", "died", "state", "stage", "attempts", "code", "replica")
_ATTEMPT_HEAD = ("stage", "run", "delivery", "at", "replica", "code", "message")

rids = click.argument("rids", metavar="[RID]...", nargs=-1)
everything = click.option("--all", "everything", is_flag=True, help="All dead letters of the pipeline.")


@click.group("dead")
def command() -> None:
    """List, show, retry or drop requests whose attempts were used up. They are kept for seven days."""


@command.command("list")
@options.pipeline
@options.as_json
@options.nats
@options.state_dir
def list_dead_letters(*, pipeline: str | None, as_json: bool, nats_url: str | None, state_dir: Path | None) -> None:
    """List the dead letters of a pipeline, the oldest first."""
    rows = _ask(_list(_settings(nats_url, state_dir), pipeline))
    if as_json:
        click.echo(json.dumps(rows))
    elif rows:
        _print_table(_HEAD, [_row(dead_letter) for dead_letter in rows])
    else:
        click.echo("no dead letters")


@command.command()
@click.argument("rid")
@options.pipeline
@options.as_json
@options.nats
@options.state_dir
def show(*, rid: str, pipeline: str | None, as_json: bool, nats_url: str | None, state_dir: Path | None) -> None:
    """Show one dead letter: how it ended, and the error and the replica of each attempt."""
    dead_letter = _ask(_show(_settings(nats_url, state_dir), pipeline, rid))
    if as_json:
        click.echo(json.dumps(dead_letter, indent=2))
        return
    for name in ("request", "pipeline", "state", "died", "run", "stage", "replica", "code", "message"):
        click.echo(f"{name:<9} {_plain(name, dead_letter[name])}")
    told = [
        one
        for one in dead_letter["history"]
        if (one["run"], one["stage"]) == (dead_letter["run"], dead_letter["stage"])
    ]
    silent = dead_letter["attempts"] - len(told)
    click.echo(f"attempts  {dead_letter['attempts']}{f', {silent} without a word' if silent > 0 else ''}")
    if dead_letter["history"]:
        click.echo()
        _print_table(
            _ATTEMPT_HEAD, [[_plain(key, one[key]) for key in _ATTEMPT_HEAD] for one in dead_letter["history"]]
        )


@command.command()
@rids
@everything
@click.option("--wait", is_flag=True, help="Wait until they have ended; exit code 1 when one is not done.")
@options.pipeline
@options.nats
@options.state_dir
def retry(
    *, rids: tuple[str, ...], everything: bool, wait: bool, pipeline: str | None, nats_url: str | None, state_dir: Path | None
) -> int:  # fmt: skip
    """Run dead letters again, each under its own id and with a new deadline. Exit code 2 if any cannot be."""
    _check_choice(rids, everything=everything)
    return _ask(_retry(_settings(nats_url, state_dir), pipeline, rids, wait=wait))


@command.command()
@rids
@everything
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.pipeline
@options.nats
@options.state_dir
def drop(
    *, rids: tuple[str, ...], everything: bool, yes: bool, pipeline: str | None, nats_url: str | None, state_dir: Path | None
) -> int:  # fmt: skip
    """Remove dead letters and what is stored for them, for good. Exit code 2 if any cannot be."""
    _check_choice(rids, everything=everything)
    if not yes and sys.stdin.isatty():
        click.confirm(f"Drop {'all dead dead_letters' if everything else ', '.join(rids)}?", abort=True)
    return _ask(_drop(_settings(nats_url, state_dir), pipeline, rids))


async def _list(settings: Any, pipeline: str | None) -> list[dict[str, Any]]:
    async with _admin(settings, pipeline) as (_, spec, admin):
        return [await _describe(spec, admin, dead_letter) for dead_letter in await admin.dead_letters()]


async def _show(settings: Any, pipeline: str | None, rid: str) -> dict[str, Any]:
    from omnibus.cli.answer import describe_attempt  # noqa: PLC0415 commands import when they run

    async with _admin(settings, pipeline) as (_, spec, admin):
        dead_letter = await admin.dead_letter(rid)
        history = [describe_attempt(spec, attempt) for attempt in dead_letter.record.attempts]
        return {**await _describe(spec, admin, dead_letter), "history": history}


async def _retry(settings: Any, pipeline: str | None, rids: Sequence[str], *, wait: bool) -> int:
    async with _admin(settings, pipeline) as (producer, spec, admin):

        async def again(rid: str) -> str:
            run = await admin.retry(rid)
            if not wait:
                return f"open, run {run}"
            result = await producer.wait(spec.name, rid)
            return str(result.state) if result.failure is None else f"{result.state}, {result.failure.message}"

        return await _each(rids or await _ids(admin), again, good=("open", "done"))


async def _drop(settings: Any, pipeline: str | None, rids: Sequence[str]) -> int:
    async with _admin(settings, pipeline) as (_, _, admin):

        async def drop(rid: str) -> str:
            await admin.drop(rid)
            return "dropped"

        return await _each(rids or await _ids(admin), drop, good=("dropped",))


async def _each(rids: Sequence[str], work: Callable[[str], Awaitable[str]], *, good: tuple[str, ...]) -> int:
    """Do it to several at a time, a line each; the exit code."""
    import asyncio  # noqa: PLC0415

    from omnibus.errors import OmnibusError  # noqa: PLC0415

    slots, codes = asyncio.Semaphore(_AT_ONCE), [0]

    async def one(rid: str) -> None:
        async with slots:
            try:
                outcome = await work(rid)
            except OmnibusError as error:
                codes.append(2)
                click.echo(f"{rid}: {error.message}", err=True)
                return
        codes.append(0 if outcome.startswith(good) else 1)
        click.echo(f"{rid}: {outcome}")

    async with asyncio.TaskGroup() as group:
        for rid in rids:
            group.create_task(one(rid), name=f"dead-{rid}")
    return max(codes)


async def _ids(admin: DeadLetterAdmin) -> list[str]:
    return [dead_letter.record.rid for dead_letter in await admin.dead_letters()]


@asynccontextmanager
async def _admin(settings: Any, pipeline: str | None) -> AsyncIterator[tuple[Producer, PipelineSpec, DeadLetterAdmin]]:
    from omnibus.cli.deployed import find_pipeline  # noqa: PLC0415
    from omnibus.cli.root import connected  # noqa: PLC0415
    from omnibus.client.dead_letter_admin import DeadLetterAdmin  # noqa: PLC0415
    from omnibus.client.producer import Producer  # noqa: PLC0415

    async with connected(settings, role="dead") as connection, Producer(connection) as producer:
        spec = await find_pipeline(connection, pipeline)
        yield producer, spec, await DeadLetterAdmin.open(producer, spec)


async def _describe(spec: PipelineSpec, admin: DeadLetterAdmin, dead_letter: DeadLetter) -> dict[str, Any]:
    record, failure, state = dead_letter.record, dead_letter.record.failure, await admin.state(dead_letter)
    names = {stage.stage_id: stage.name for stage in spec.stages}
    stage_id = failure.stage_id if failure is not None else None
    return {
        "request": record.rid,
        "pipeline": spec.name,
        "state": str(state) if state is not None else "forgotten",
        "died": round(dead_letter.died, 3),
        "run": record.ticket.run,
        "stage": None if stage_id is None else names.get(stage_id, str(stage_id)),
        "replica": failure.replica if failure is not None else None,
        "code": failure.code if failure is not None else None,
        "message": failure.message if failure is not None else None,
        "attempts": failure.attempts if failure is not None else 0,
    }


def _row(dead_letter: dict[str, Any]) -> list[str]:
    return [_plain(key, dead_letter[key]) for key in _HEAD]


def _plain(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key in ("died", "at"):
        return datetime.fromtimestamp(value, UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", "Z")
    return " ".join(str(value).split())


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they must be, also into a pipe: an id that is cut off is of no use."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _check_choice(rids: Sequence[str], *, everything: bool) -> None:
    if bool(rids) == everything:
        raise click.UsageError("name requests, or give --all")


def _settings(nats_url: str | None, state_dir: Path | None) -> Any:
    from omnibus.cli.root import load_settings  # noqa: PLC0415

    return load_settings(nats_url=nats_url, state_dir=state_dir)


def _ask(work: Coroutine[Any, Any, T]) -> T:
    from omnibus.cli.root import ask  # noqa: PLC0415

    return ask(work)
