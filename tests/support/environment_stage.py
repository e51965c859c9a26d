"""Stages that say in which environment they run, or never come up."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

from omnibus.workers.engines.protocol import StageInput

SHOWN = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "OF_STAGE")


async def report(_stage_input: StageInput) -> str:
    """The environment of the process, after a while, so that each replica gets some of many requests."""
    await asyncio.sleep(0.05)
    return json.dumps({name: os.environ.get(name) for name in SHOWN} | {"pid": os.getpid()})


class Slow:
    """Takes its time to load, and writes down from when to when."""

    outputs = {"text": "text"}  # noqa: RUF012 read by the engine as it is

    def __init__(self, telemetry: str, seconds: float) -> None:
        started = time.monotonic()
        time.sleep(seconds)
        with Path(telemetry).open("a") as file:
            file.write(f"{started} {time.monotonic()}\n")

    def __call__(self, _stage_input: StageInput) -> str:
        return "loaded"


class Stuck:
    """Never loads, in a thread that nothing can interrupt."""

    outputs = {"text": "text"}  # noqa: RUF012 read by the engine as it is

    def __init__(self) -> None:
        print("waiting for a device that never answers", flush=True)
        time.sleep(600)

    def __call__(self, _stage_input: StageInput) -> str:
        return "never"
