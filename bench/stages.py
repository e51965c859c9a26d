"""Stages that cost nothing themselves: what is measured is what lies between them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from functools import cache

import numpy as np

from omnibus.workers.engines.protocol import StageInput


async def echo(stage_input: StageInput) -> str:
    """Return the text of the stage before, or of the request."""
    for outputs in stage_input.sources.values():
        return str(outputs["text"])
    return stage_input.request.text()


async def make_array(stage_input: StageInput) -> dict[str, object]:
    """Return an array of as many bytes as the prompt says, and the moment at which it was made."""
    return {"array": _array(int(stage_input.request.text())), "made": {"at": time.monotonic()}}


async def take_array(stage_input: StageInput) -> str:
    """Return, as JSON, the seconds from the array's making to its arrival here; raises ValueError for a wrong one."""
    now = time.monotonic()
    (outputs,) = stage_input.sources.values()
    array, expected = outputs["array"], _array(int(stage_input.request.text()))
    if (
        array.shape != expected.shape
        or array.dtype != expected.dtype
        or not np.array_equal(array[::509], expected[::509])
    ):
        raise ValueError(f"another array came: {array.dtype}, {array.shape}")
    return json.dumps({"seconds": now - outputs["made"]["at"]})


@cache
def _array(nbytes: int) -> np.ndarray:
    return np.arange(max(nbytes // 4, 1), dtype=np.float32)


async def speak(stage_input: StageInput) -> AsyncIterator[str]:
    """Yield words: the prompt `COUNT RATE` says how many, and how many a second; 0: as fast as they are taken.

    With a rate each word is the moment at which it was made, nanoseconds of the monotonic clock.
    """
    count, rate = map(float, stage_input.request.text().split())
    started = time.monotonic()
    for index in range(int(count)):
        if not rate:
            yield " word"
            await asyncio.sleep(0)  # as an engine does: a word a step, never many at once
            continue
        await asyncio.sleep(max(started + index / rate - time.monotonic(), 0.0))
        yield f" {time.monotonic_ns()}"
