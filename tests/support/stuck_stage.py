"""A stage whose code blocks until a test lets it go, and one that raises whatever a prompt names."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator

from omnibus.workers.engines.protocol import EngineInput, StageInput

let_go = threading.Event()
"""Set by the test whose stage is in this process."""


def answer(stage_input: StageInput) -> str:
    """A plain function, which blocks its thread on a prompt that says so."""
    prompt = stage_input.request.text()
    if prompt == "block":
        let_go.wait(60)
    return prompt


async def wait(stage_input: StageInput) -> str:
    """An async function that heeds no cancellation, on a prompt that says so."""
    prompt = stage_input.request.text()
    while prompt == "block" and not let_go.is_set():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            continue
    return prompt


async def hold(stage_input: StageInput) -> str:
    """An async function that blocks its event loop on a prompt that says so."""
    return answer(stage_input)


async def hold_generating(stage_input: StageInput) -> AsyncIterator[str]:
    """The same between two pieces of a text."""
    yield "first "
    yield answer(stage_input)


def hold_input(stage_input: StageInput) -> EngineInput:
    """An input processor that blocks."""
    return EngineInput(text=answer(stage_input))


async def hold_input_async(stage_input: StageInput) -> EngineInput:
    return hold_input(stage_input)


def slow_input(stage_input: StageInput) -> EngineInput:
    """An input processor that takes its time."""
    time.sleep(0.1)
    return EngineInput(text=stage_input.request.text())


class Dying:
    """Its watch over its own death raises what a prompt names."""

    def __init__(self) -> None:
        self._asked = asyncio.Queue[str]()

    async def __call__(self, stage_input: StageInput) -> str:
        self._asked.put_nowait(stage_input.request.text())
        return "fine"

    async def wait_dead(self) -> Exception:
        _raise(await self._asked.get())
        return RuntimeError("never asked")


class Unclosable:
    """Cannot be closed."""

    def __call__(self, stage_input: StageInput) -> str:
        return stage_input.request.text()

    async def close(self) -> None:
        raise ValueError("the device is busy")


class WordlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class LargeError(BaseException):
    """No Exception."""


def _raise(prompt: str) -> None:
    match prompt:
        case "surrogate":
            raise ValueError("cannot read /srv/models/caf\udce9/weights.bin")
        case "wordless":
            raise WordlessError
        case "cancelled":
            raise asyncio.CancelledError("an inner task was")
        case "interrupt":
            raise KeyboardInterrupt
        case "exit":
            raise SystemExit(3)
        case "base":
            raise LargeError("of another kind")
        case "lines":
            raise ValueError("first line of /srv/models/thinker/config.json\nsecond line")


def raise_plain(stage_input: StageInput) -> str:
    _raise(stage_input.request.text())
    return "fine"


def raise_generating(stage_input: StageInput) -> Iterator[str]:
    yield "fi"
    _raise(stage_input.request.text())
    yield "ne"


async def raise_async(stage_input: StageInput) -> str:
    await asyncio.sleep(0)
    if stage_input.request.text() == "cancels itself":
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)
    _raise(stage_input.request.text())
    return "fine"


async def raise_async_generating(stage_input: StageInput) -> AsyncIterator[str]:
    yield "fi"
    _raise(stage_input.request.text())
    yield "ne"


def asked(stage_input: StageInput) -> str:
    """Fails a canary when its file is there, and blocks when that says so."""
    from pathlib import Path  # noqa: PLC0415 a stage of its own

    prompt = stage_input.request.text()
    if prompt.startswith("canary ") and (sick := Path(prompt.removeprefix("canary "))).exists():
        if sick.read_text() == "block":
            let_go.wait(60)
        raise RuntimeError("the device is lost")
    return prompt
