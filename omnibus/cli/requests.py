"""`omnibus cancel` and `omnibus dead`: requests by their ids."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from omnibus.cli import options
from omnibus.cli.broker_command import broker_command

if TYPE_CHECKING:
    from omnibus.cli.root import CommandSession
    from omnibus.client.dead_letter_admin import DeadLetterAdmin, DeadLetterFacts
    from omnibus.pipeline.spec import PipelineSpec

_AT_ONCE = 16
"""Dead letters that are retried or dropped at the same time."""
_FACTS = ("request_id", "pipeline", "state", "died", "run", "stage", "replica", "code", "message")
_COLUMNS = ("request_id", "died", "state", "stage", "attempts", "code", "replica")

request_ids = click.argument("request_ids", metavar="[REQUEST_ID]...", nargs=-1)
everything = click.option("--all", "everything", is_flag=True, help="All dead letters of the pipeline.")


@click.command()
@click.argument("request_ids", metavar="REQUEST_ID...", nargs=-1, required=True)
@broker_command("cancel")
async def cancel(session: CommandSession, request_ids: tuple[str, ...]) -> int:
    """Cancel requests by id, and say how each has ended, and what its text had come to. Exit code 2 if any is unknown."""
    from omnibus.client.request_events import ABORT  # noqa: PLC0415 commands import when they run

    name = (await session.spec()).name

    async def end(request_id: str) -> str:
        result = await session.producer.cancel(name, request_id)
        texts = [output.text for output in result.outputs if output.finish_reason == ABORT]
        return "\n".join([str(result.state), *texts])

    return await _each(request_ids, end, at_once=1)


@click.group()
def dead() -> None:
    """List, show, retry or drop requests whose attempts were used up. They are kept for seven days."""


@dead.command("list")
@options.as_json
@broker_command("dead")
async def list_dead_letters(session: CommandSession, *, as_json: bool) -> None:
    """List the dead letters of a pipeline, the oldest first."""
    from omnibus.cli.tables import make_table, show  # noqa: PLC0415

    spec, admin = await _open(session)
    found = [_as_json(spec, await admin.describe(dead_letter)) for dead_letter in await admin.dead_letters()]
    if as_json:
        click.echo(json.dumps(found))
    elif found:
        rows = [[_shown(key, one[key]) for key in _COLUMNS] for one in found]
        show(make_table([_heading(key) for key in _COLUMNS], rows))
    else:
        click.echo("no dead letters")


@dead.command()
@click.argument("request_id")
@options.as_json
@broker_command("dead")
async def show(session: CommandSession, request_id: str, *, as_json: bool) -> None:
    """Show one dead letter. How it ended, and the error and the replica of each attempt."""
    from omnibus.cli import tables  # noqa: PLC0415
    from omnibus.cli.answer import attempts_table, describe_attempt  # noqa: PLC0415

    spec, admin = await _open(session)
    known = await admin.describe(await admin.dead_letter(request_id))
    facts, history = _as_json(spec, known), [describe_attempt(spec, attempt) for attempt in known.history]
    if as_json:
        click.echo(json.dumps({**facts, "history": history}, indent=2))
        return
    for name in _FACTS:
        click.echo(f"{_heading(name):<10} {_shown(name, facts[name]) or '-'}")
    reported = [one for one in history if (one["run"], one["stage"]) == (facts["run"], facts["stage"])]
    silent = facts["attempts"] - len(reported)
    click.echo(f"attempts   {facts['attempts']}{f', {silent} without a report' if silent > 0 else ''}")
    if history:
        click.echo()
        tables.show(attempts_table(history))


@dead.command()
@request_ids
@everything
@click.option("--wait", is_flag=True, help="Wait until they have ended; exit code 1 when one is not done.")
@broker_command("dead")
async def retry(session: CommandSession, request_ids: tuple[str, ...], *, everything: bool, wait: bool) -> int:
    """Run dead letters again. Each keeps its id and gets a new deadline. Exit code 2 if any cannot be."""
    _check_choice(request_ids, everything=everything)
    spec, admin = await _open(session)

    async def again(request_id: str) -> str:
        run = await admin.retry(request_id)
        if not wait:
            return f"open, run {run}"
        result = await session.producer.wait(spec.name, request_id)
        return str(result.state) if result.failure is None else f"{result.state}, {result.failure.message}"

    return await _each(request_ids or await _ids(admin), again, good=("open", "done"))


@dead.command()
@request_ids
@everything
@options.confirmed("Drop these dead letters for good?")
@broker_command("dead")
async def drop(session: CommandSession, request_ids: tuple[str, ...], *, everything: bool) -> int:
    """Remove dead letters and what is stored for them, for good. Exit code 2 if any cannot be."""
    _check_choice(request_ids, everything=everything)
    _, admin = await _open(session)

    async def remove(request_id: str) -> str:
        await admin.drop(request_id)
        return "dropped"

    return await _each(request_ids or await _ids(admin), remove)


async def _each(
    request_ids: Sequence[str], work: Callable[[str], Awaitable[str]], *, good: tuple[str, ...] = ("",), at_once: int = _AT_ONCE
) -> int:  # fmt: skip
    """Do it to several at a time, a line each; the exit code."""
    from omnibus.errors import OmnibusError  # noqa: PLC0415

    slots, codes = asyncio.Semaphore(at_once), [0]

    async def one(request_id: str) -> None:
        async with slots:
            try:
                outcome = await work(request_id)
            except OmnibusError as error:
                codes.append(2)
                click.echo(f"{request_id}: {error.message}", err=True)
                return
        codes.append(0 if outcome.startswith(good) else 1)
        click.echo(f"{request_id}: {outcome}")

    async with asyncio.TaskGroup() as group:
        for request_id in request_ids:
            group.create_task(one(request_id), name=f"request-{request_id}")
    return max(codes)


async def _open(session: CommandSession) -> tuple[PipelineSpec, DeadLetterAdmin]:
    from omnibus.client.dead_letter_admin import DeadLetterAdmin  # noqa: PLC0415

    spec = await session.spec()
    return spec, await DeadLetterAdmin.open(session.producer, spec)


async def _ids(admin: DeadLetterAdmin) -> list[str]:
    return [dead_letter.record.rid for dead_letter in await admin.dead_letters()]


def _as_json(spec: PipelineSpec, facts: DeadLetterFacts) -> dict[str, Any]:
    return {
        "request_id": facts.request_id,
        "pipeline": spec.name,
        "state": str(facts.state) if facts.state is not None else "forgotten",
        **{name: getattr(facts, name) for name in ("died", "run", "stage", "replica", "code", "message", "attempts")},
    }


def _shown(key: str, value: Any) -> str | None:
    from omnibus.cli.tables import clock  # noqa: PLC0415

    if value is None or key == "died":
        return clock(value)
    return " ".join(str(value).split())


def _heading(key: str) -> str:
    return key.replace("_", " ")


def _check_choice(request_ids: Sequence[str], *, everything: bool) -> None:
    if bool(request_ids) == everything:
        raise click.UsageError("name requests, or give --all")
