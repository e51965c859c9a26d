"""Stages that write and read flows, step by step as a test wants it."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

from omnibus.errors import PayloadLost
from omnibus.workers.engines.protocol import Chunk, EngineInput, StageInput

attempts: Counter[tuple[str, str]] = Counter()
"""Runs of each stage's code, by stage and prompt."""
read: defaultdict[str, list[str]] = defaultdict(list)
"""Words that consumers have read, by prompt."""
steps: defaultdict[str, threading.Semaphore] = defaultdict(lambda: threading.Semaphore(0))
"""Words that a producer of a prompt that begins with `step` may make."""
closed: set[str] = set()
"""Prompts whose plain consumer was closed."""


def reset() -> None:
    for known in (attempts, read, steps, closed):
        known.clear()


async def write(stage_input: StageInput) -> AsyncIterator[object]:
    """Each word of the prompt as a chunk; `fails-N` in it: attempt 1 fails before word N; `lost` needs another run."""
    prompt = stage_input.request.text()
    attempts["write", prompt] += 1
    attempt = attempts["write", prompt]
    for number, word in enumerate(prompt.split()):
        if prompt.startswith("step"):
            await asyncio.to_thread(steps[prompt].acquire, timeout=30)
        if word.startswith("fails") and (attempt == 1 or word == "fails-always"):
            raise ValueError(f"word {number}")
        if word == "lost" and attempt == 1:
            raise PayloadLost("what the word was made of is gone")
        yield Chunk(outputs={"word": f"{word}/{attempt}" if "restart" in prompt else word})


def say(stage_input: StageInput) -> Iterator[str]:
    """The prompt, word by word, as a text; a first attempt at one with `breaks` fails in the middle."""
    prompt = stage_input.request.text()
    attempts["say", prompt] += 1
    for number, word in enumerate(prompt.split()):
        if word == "breaks" and attempts["say", prompt] == 1:
            time.sleep(0.3)
            raise ValueError("a word broke")
        other = "-other" if "varies" in prompt and number == 1 else ""
        yield f"{word}{other * (attempts['say', prompt] - 1)} "


async def shout_words(stage_input: StageInput) -> AsyncIterator[object]:
    """The words of a flow in upper case, as a text, on the loop of the stage."""
    prompt = stage_input.request.text()
    attempts["shout", prompt] += 1
    async for chunk in stage_input.flows["writer"]:
        word = str(chunk.get("word", chunk.get("text")))
        read[prompt].append(word)
        if word == "stumble" and attempts["shout", prompt] == 1:
            raise ValueError("stumbled")
        if word == "never":
            raise ValueError("always stumbles")
        yield word.upper() + " "


def shout_plainly(stage_input: StageInput) -> Iterator[str]:
    """The same in a thread."""
    prompt = stage_input.request.text()
    try:
        for chunk in stage_input.flows["writer"]:
            word = str(chunk.get("word", chunk.get("text")))
            read[prompt].append(word)
            yield word.upper() + " "
    finally:
        closed.add(prompt)


async def shout_impatiently(stage_input: StageInput) -> str:
    """The same, with waits that are given up after less time than a word takes, and some at the moment it arrives."""
    return await _impatiently(stage_input)


def shout_impatiently_elsewhere(stage_input: StageInput) -> str:
    """The same on an event loop of its own."""
    return asyncio.run(_impatiently(stage_input))


async def _impatiently(stage_input: StageInput) -> str:
    prompt, words = stage_input.request.text(), list[str]()
    flow = aiter(stage_input.flows["writer"])
    with suppress(StopAsyncIteration):
        for turn in itertools.count():
            try:
                words.append(str((await asyncio.wait_for(anext(flow), 0.002 * (turn % 7)))["word"]))
            except TimeoutError:
                attempts["gave up", prompt] += 1
                steps[prompt].release()
    return " ".join(words).upper()


async def first_word(stage_input: StageInput) -> str:
    """Reads one chunk, and leaves the rest."""
    async for chunk in stage_input.flows["writer"]:
        return str(chunk["word"])
    return ""


async def whole_or_flow(stage_input: StageInput) -> str:
    return f"flows {sorted(stage_input.flows)}, sources {sorted(stage_input.sources)}"


async def parts_of(stage_input: StageInput) -> AsyncIterator[EngineInput]:
    """An input processor: each word is a part."""
    async for chunk in stage_input.flows["writer"]:
        yield EngineInput(text=str(chunk["word"]))
