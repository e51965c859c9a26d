"""Stages that speak in their own ways; each holds its end back until its first sounds were delivered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np

from omnibus.workers.engines.protocol import Chunk, StageInput, TextDelta

RATE = 24000
COUNT = 3
attempts: list[str] = []
"""Prompts of the attempts of `nan_once`."""


def piece(number: int = 0, *channels: int) -> np.ndarray:
    return np.full((*channels, RATE // 4), (number + 1) / 8, np.float32)


async def nan_once(given: StageInput) -> AsyncIterator[Chunk]:
    """The first attempt has a second chunk that is no sound."""
    attempts.append(given.request.text())
    for number in range(COUNT):
        samples = piece(number)
        if attempts.count(attempts[-1]) == 1 and number == 1:
            samples[:] = np.nan
        yield Chunk(outputs={"audio": samples, "sample_rate": RATE})
        await asyncio.sleep(0)


async def tokens_first(_: StageInput) -> AsyncIterator[Chunk]:
    for number in range(COUNT):
        yield Chunk(outputs={"token_ids": np.arange(1000), "audio": piece(number), "sample_rate": RATE})
        await asyncio.sleep(0)


async def tokens_between(_: StageInput) -> AsyncIterator[Chunk]:
    """Not every chunk has a sound."""
    for number in range(COUNT):
        yield Chunk(outputs={"token_ids": np.arange(1000), "sample_rate": RATE})
        yield Chunk(outputs={"audio": piece(number), "sample_rate": RATE})
        await asyncio.sleep(0)


async def stereo(_: StageInput) -> AsyncIterator[Chunk]:
    for number in range(COUNT):
        yield Chunk(outputs={"audio": piece(number, 2), "sample_rate": RATE})
        await asyncio.sleep(0)


async def large(_: StageInput) -> AsyncIterator[Chunk]:
    """Chunks of which none rides inside its message."""
    for number in range(COUNT):
        yield Chunk(outputs={"audio": np.repeat(piece(number), 12), "sample_rate": RATE})
        await asyncio.sleep(0)


async def two_rates(_: StageInput) -> AsyncIterator[Chunk]:
    for rate in (RATE, 16000):
        yield Chunk(outputs={"audio": piece(), "sample_rate": rate})
        await asyncio.sleep(0)


async def two_widths(_: StageInput) -> AsyncIterator[Chunk]:
    for channels in ((), (2,)):
        yield Chunk(outputs={"audio": piece(0, *channels), "sample_rate": RATE})
        await asyncio.sleep(0)


async def pass_on(given: StageInput) -> AsyncIterator[TextDelta]:
    """Reads another voice's flow, and says what its chunks have."""
    async for chunk in given.flows["voice"]:
        yield TextDelta(text=" ".join(sorted(chunk)) + ";")
