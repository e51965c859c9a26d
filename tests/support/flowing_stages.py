"""Stages for load that read each other while they run: a writer of words, a speaker of them, a singer of what is spoken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import numpy as np

from omnibus.workers.engines.protocol import Chunk, StageInput
from tests.support.spoken_text import RATE, samples_of

PAUSE = 0.02
"""Seconds that the writer takes for a word, where the request says nothing else."""


async def write(stage_input: StageInput, sampling: Mapping[str, Any]) -> AsyncIterator[object]:
    """Each word of the prompt as a chunk, with a `load` of as many bytes as the request says."""
    load = sampling.get("load", 1)
    for number, word in enumerate(stage_input.request.text().split()):
        await asyncio.sleep(sampling.get("pause", PAUSE))
        yield Chunk(outputs={"word": word, "load": np.full(load, number, np.uint8)})
    yield {"word": "", "load": np.zeros(1, np.uint8)}


async def speak(stage_input: StageInput, sampling: Mapping[str, Any]) -> AsyncIterator[object]:
    """The words of the writer's flow as a text; what is missing, repeated or another chunk's is an error."""
    number = 0
    async for chunk in stage_input.flows["writer"]:
        load = chunk["load"]
        if load.size != sampling.get("load", 1) or not (load == number).all():
            raise ValueError(f"chunk {number} has another one's load: {load.size} bytes, {load[:1]}")
        await asyncio.sleep(sampling.get("pause", 0.0))
        yield f"{' ' if number else ''}{chunk['word']}"
        number += 1


def sing(stage_input: StageInput) -> Iterator[object]:
    """The speaker's text as a sound, piece by piece, in a thread."""
    for chunk in stage_input.flows["speaker"]:
        yield Chunk(outputs={"audio": samples_of(chunk["text"]), "sample_rate": RATE})
