"""Bundles for tests: parts of a prompt between bars are its companions, each with engine arguments of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from omnibus.wire.request import Request
from omnibus.workers.engines.protocol import MAIN, EngineInput, StageInput

closed: set[str] = set()
"""Roles of members whose input in parts was closed."""
together = threading.Barrier(3)
"""Passed when as many members run at once."""


def prompt_of(main: str, /, *companions: str, **arguments: Mapping[str, Any]) -> str:
    """A prompt that `expand` takes apart: `arguments` are those of a member's engine, by role."""
    parts = dict(zip((MAIN, "negative", "third"), (main, *companions), strict=False))
    return "|".join(f"{json.dumps(dict(arguments.get(role, {})))}~{text}" for role, text in parts.items())


def expand(stage_input: StageInput) -> dict[str, StageInput]:
    """Roles `main`, `negative`, `third`, `r3`, `r4`, … of a prompt with bars; of one without there is no bundle."""
    roles = [MAIN, "negative", "third", *(f"r{number}" for number in range(3, 32))]
    parts = stage_input.request.text().split("|")
    if len(parts) == 1:
        return {}
    return {role: _member(stage_input, part) for role, part in zip(roles, parts, strict=False)}


async def expand_async(stage_input: StageInput) -> dict[str, StageInput]:
    await asyncio.sleep(0)
    return expand(stage_input)


def expand_wrongly(stage_input: StageInput) -> Any:
    """Returns what is named by the prompt."""
    wrong = {"text": "main", "role": {"a b": stage_input}, "input": {"negative": EngineInput(text="x")}}
    prompt = stage_input.request.text()
    if prompt == "raise":
        raise ZeroDivisionError("a bug")
    return wrong[prompt]


def by_role(stage_input: StageInput) -> EngineInput:
    """An input processor that sees the role."""
    return EngineInput(text=f"{stage_input.role}: {stage_input.request.text()}")


def against(stage_input: StageInput) -> EngineInput:
    """An input processor that takes both texts of the stage before."""
    (name,) = stage_input.sources
    negative = stage_input.companions[name]["negative"]
    return EngineInput(text=f"{stage_input.sources[name]['text']} not {negative['text']}")


def told(stage_input: StageInput) -> str:
    """A stage that says all that it was given."""
    return json.dumps([stage_input.sources, stage_input.companions], sort_keys=True)


async def overheard(stage_input: StageInput) -> str:
    """A stage that says what it reads of another one that still runs."""
    ((name, flow),) = stage_input.flows.items()
    return json.dumps([name, "".join([chunk["text"] async for chunk in flow]), stage_input.companions])


async def in_parts(stage_input: StageInput) -> AsyncIterator[EngineInput]:
    """An input processor that yields the words of a prompt, and is noted when it is closed."""
    try:
        for word in stage_input.request.text().split():
            yield EngineInput(text=word)
        await asyncio.sleep(60)
    finally:
        closed.add(stage_input.role)


def meet(stage_input: StageInput) -> str:
    """A plain function that returns when all members run it at once."""
    together.wait(20)
    return f"{stage_input.role} {stage_input.request.text()}"


def _member(stage_input: StageInput, part: str) -> StageInput:
    arguments, bar, text = part.rpartition("~")
    sampling = {"sim": json.loads(arguments), "s0": json.loads(arguments)} if bar else {}
    request: Request = msgspec.structs.replace(stage_input.request, prompt=text.strip(), sampling_params=sampling)
    return replace(stage_input, request=request)
