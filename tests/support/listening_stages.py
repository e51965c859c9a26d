"""Stages that read an open input while they speak."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator

import numpy as np

from omnibus.workers.engines.protocol import SEGMENT_END, Chunk, SegmentEnd, StageInput

runs: Counter[str] = Counter()
"""Runs of the stages' code, by the text of the request."""
heard: defaultdict[str, list[str]] = defaultdict(list)
"""Segments that were read, by the text of the request."""
gates: defaultdict[str, threading.Event] = defaultdict(threading.Event)
"""Set when a segment with the text `wait` may be answered."""


def reset() -> None:
    for known in (runs, heard, gates):
        known.clear()


async def echo(stage_input: StageInput) -> AsyncIterator[object]:
    """Each segment in upper case, word by word. `fail once`: the first run ends there; `bye` ends the session."""
    first = stage_input.request.text()
    runs[first] += 1
    async for segment in stage_input.flows["input"]:
        heard[first].append(segment["text"])
        if segment["text"] == "fail once" and runs[first] == 1:
            raise ValueError("failed once")
        if segment["text"] == "wait":
            await asyncio.to_thread(gates[first].wait, 30)
        for word in segment["text"].split():
            yield word.upper() + " "
        yield SegmentEnd()
        if segment["text"] == "bye":
            return


async def echo_slowly(stage_input: StageInput) -> AsyncIterator[object]:
    """The same, of words that take their time."""
    async for segment in stage_input.flows["input"]:
        for word in segment["text"].split():
            yield word.upper() + " "
            await asyncio.sleep(0.02)
        yield SegmentEnd()


def echo_plainly(stage_input: StageInput) -> Iterator[object]:
    """The same in a thread."""
    first = stage_input.request.text()
    for segment in stage_input.flows["input"]:
        heard[first].append(segment["text"])
        yield segment["text"].upper() + " "
        yield SegmentEnd()


async def kinds(stage_input: StageInput) -> str:
    """What each segment has."""
    found = [
        "+".join(f"{name}:{len(value)}" for name, value in sorted(segment.items()))
        async for segment in stage_input.flows["input"]
    ]
    return " ".join(found)


def deaf(stage_input: StageInput) -> str:
    """Looks at the request alone."""
    return stage_input.request.text()


async def count_letters(stage_input: StageInput) -> AsyncIterator[str]:
    """Reads what the stage before writes, while that listens."""
    async for chunk in stage_input.flows["ear"]:
        if SEGMENT_END not in chunk:
            yield f"{len(chunk['text'].strip())} "


async def say_answers(stage_input: StageInput) -> AsyncIterator[object]:
    """Each answer of the stage before in one piece, when it is whole."""
    answer = ""
    async for chunk in stage_input.flows["ear"]:
        answer += chunk["text"]
        if SEGMENT_END in chunk:
            yield f"<{answer}>"
            yield SegmentEnd()
            answer = ""
    assert not answer


async def film(stage_input: StageInput) -> AsyncIterator[object]:
    """Frames in a shade of grey that each segment changes, without waiting for one."""
    segments = aiter(stage_input.flows["input"])
    segment = await anext(segments)
    while segment is not None:
        following = asyncio.ensure_future(anext(segments, None))
        while not following.done():
            yield Chunk(outputs={"video": np.full((2, 8, 8, 3), int(segment["text"]), np.uint8), "fps": 8.0})
            await asyncio.sleep(0.02)
        segment = await following
