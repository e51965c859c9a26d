"""Jobs for engines, without a broker around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from omnibus.wire.request import Request
from omnibus.wire.subjects import INPUT
from omnibus.workers.bundle import items_of
from omnibus.workers.engines.protocol import Engine, EngineInput, Finished, Flows, Item, Job, Outputs, StageInput


class _Read:
    """A flow that somebody else makes the parts of."""

    def __aiter__(self) -> AsyncIterator[Outputs]:
        raise AssertionError("it can be read once")

    __iter__ = __aiter__


def make_job(
    rid: str = "job", sampling: Mapping[str, Any] | None = None, *, lora: str | None = None,
    parts: AsyncIterator[EngineInput] | None = None, is_open: bool = False, stream: bool = False, **given: Any,
) -> Job:  # fmt: skip
    """A job of an engine; `given` are fields of its EngineInput, `parts` those of an open input or of one that is streamed."""
    request = Request(prompt="unused", lora=lora, stream=stream, resumable=is_open)
    stage_input = StageInput(rid=rid, request=request, flows=Flows({INPUT: _Read()} if is_open else {}))
    return Job(
        rid=rid, stage_input=stage_input, engine_input=EngineInput(**given), sampling=sampling or {}, parts=parts
    )


def make_bundle(job: Job, **companions: Job) -> Job:
    """A job with companions by role, under one id."""
    return replace(job, companions={role: replace(one, rid=job.rid) for role, one in companions.items()})


async def run_job(engine: Engine, job: Job) -> tuple[list[Item], Finished]:
    """Everything that a job yields: what came before the last item, and the last."""
    async with aclosing(items_of(engine, job)) as generated:  # type: ignore[type-var]
        items = [item async for item in generated]
    assert isinstance(items[-1], Finished)
    assert not any(isinstance(item, Finished) for item in items[:-1])
    return items[:-1], items[-1]
