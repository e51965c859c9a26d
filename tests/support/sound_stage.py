"""A `python` stage that speaks in chunks, and goes on behind the first one only when its test lets it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np

from omnibus.errors import EngineError
from omnibus.workers.engines.protocol import Chunk, StageInput

RATE = 8000
CHUNK = 1280
CHUNKS = 6
SOUND = (0.5 * np.sin(2 * np.pi * 500 * np.arange(CHUNK * CHUNKS) / RATE)).astype(np.float32)
go_on = threading.Event()
"""Set by a test that has what it waits for."""
attempts: list[int] = []
"""Chunks that each attempt makes before it fails, of a prompt that asks for failures; the last attempt makes all."""


def speak(stage_input: StageInput) -> Iterator[Chunk]:
    """`hold`: wait behind the first chunk; `fail`: fail as `attempts` says."""
    prompt, most = stage_input.request.text(), CHUNKS
    if "fail" in prompt and attempts:
        most = attempts.pop(0)
    for number in range(CHUNKS):
        if number == most:
            raise EngineError("the voice broke")
        samples = SOUND[number * CHUNK : (number + 1) * CHUNK]
        yield Chunk(outputs={"audio": samples, "sample_rate": RATE})
        if "hold" in prompt and number == 0 and not go_on.wait(30.0):
            raise EngineError("nobody came")


speak.outputs = {"audio": "audio", "sample_rate": "json"}  # type: ignore[attr-defined]
