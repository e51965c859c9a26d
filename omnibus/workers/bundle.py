"""A bundle: the members of one job, such as a prompt and its negative prompt, that run side by side in one engine.

Members have one fate. The first failure is the bundle's, and every other member is stopped for it; an abort of one ends all;
closing the bundle closes each member, and takes until nothing works on any of them.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

from omnibus.errors import EngineDead, EngineError, OmnibusError
from omnibus.wire.envelope import TokenUsage
from omnibus.workers.containment import contained
from omnibus.workers.engines.protocol import MAIN, Engine, Finished, Item, Job, TextDelta

AHEAD = 64
"""Items that members may be ahead of who takes them, together."""
_SIGN = TextDelta(text="")
"""Shows that a companion has come further: nothing of what it writes is for the caller."""
_Made = asyncio.Queue[tuple[str, Item | OmnibusError]]


def items_of(engine: Engine, job: Job) -> AsyncIterator[Item]:
    """The items of a job, of all members of its bundle where it has companions; the last one is Finished.

    The main member's items are passed on, and of a companion only that it made one. Finished has the main member's outputs
    and reason, the outputs of the companions by role, and the tokens of all. Raises what the first member to fail raises,
    with that companion's role in the message.
    """
    return _together(engine, job) if job.companions else engine.generate(job)


async def _together(engine: Engine, job: Job) -> AsyncGenerator[Item, None]:
    made = _Made(AHEAD)
    members = [
        asyncio.create_task(_run(engine, role, member, made), name=f"{role}-{job.rid}")
        for role, member in {MAIN: job, **job.companions}.items()
    ]
    try:
        finished: dict[str, Finished] = {}
        while len(finished) < len(members):
            role, item = await made.get()
            if isinstance(item, OmnibusError):
                raise _named(role, item)
            if isinstance(item, Finished):
                finished[role] = item
                if item.finish_reason == "abort":
                    break
            else:
                yield item if role == MAIN else _SIGN
        yield _joined(finished)
    finally:
        for member in members:
            member.cancel()
        await asyncio.wait(members)
        for one in job.companions.values():
            if one.parts is not None:
                await cast("Any", one.parts).aclose()


async def _run(engine: Engine, role: str, job: Job, made: _Made) -> None:
    await made.put((role, await contained(_forward(engine, role, job, made))))


async def _forward(engine: Engine, role: str, job: Job, made: _Made) -> Finished:
    """Hand on what a member makes; its last item when nothing works on it any more."""
    async with aclosing(cast("Any", engine.generate(job))) as items:
        async for item in items:
            if isinstance(item, Finished):
                return item
            await made.put((role, item))
    raise EngineError("the engine ended without a result")


def _joined(finished: Mapping[str, Finished]) -> Finished:
    main = finished.get(MAIN, Finished(outputs={}))
    if any(one.finish_reason == "abort" for one in finished.values()):
        return replace(main, finish_reason="abort")
    usage = [one.usage for one in finished.values()]
    return replace(
        main,
        usage=TokenUsage(sum(one.prompt_tokens for one in usage), sum(one.completion_tokens for one in usage)),
        companions={role: one.outputs for role, one in finished.items() if role != MAIN},
    )


def _named(role: str, error: OmnibusError) -> OmnibusError:
    """The error of a companion with its role: a copy, since engines raise one error for several jobs.

    It names no field of the request: the companion's input is none. The death of the whole engine stays as it is.
    """
    if role == MAIN or isinstance(error, EngineDead):
        return error
    named = copy.copy(error)
    named.args, named.param, named.__cause__ = (f"companion {role!r}: {error.message}",), None, error
    return named
