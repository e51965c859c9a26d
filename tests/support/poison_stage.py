"""Stages and an input processor that do what a prompt tells them, all of it bad."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import numpy as np

from omnibus.media import pictures
from omnibus.workers.engines.protocol import EngineInput, StageInput

MANY = 20_000
PICTURE = pictures.encoded(np.zeros((1, 1), np.uint8))


def process(stage_input: StageInput) -> EngineInput:
    """An input processor with bugs."""
    match stage_input.request.prompt:
        case "processor raises":
            raise ZeroDivisionError("a bug of a processor")
        case "processor exits":
            sys.exit(3)
        case "processor ends the process":
            os._exit(3)
    return EngineInput(text=stage_input.request.text())


def first(stage_input: StageInput) -> Any:
    """A plain function, which runs in a thread."""
    match stage_input.request.prompt:
        case "raises":
            raise ZeroDivisionError("a bug of an engine")
        case "raises much":
            raise ZeroDivisionError("x" * 10_000_000)
        case "raises StopIteration":
            next(iter(()))
        case "exits":
            sys.exit(3)
        case "ends the process":
            os._exit(3)
        case "is killed, as for its memory":
            os.kill(os.getpid(), signal.SIGKILL)
        case "sends an object":
            return object()
        case "sends a deep nest":
            return nest(100_000)
    return "said"


async def second(stage_input: StageInput) -> Any:
    """An async function, which runs on the replica's loop; delivers files."""
    match stage_input.request.prompt:
        case "hangs":
            await asyncio.Event().wait()
        case "delivers too many":
            return [PICTURE] * MANY
        case "delivers nothing":
            return None
    return [PICTURE]


def nest(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value
