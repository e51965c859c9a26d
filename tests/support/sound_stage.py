"""A `python` stage that speaks in chunks, and goes on behind the first one only when its test lets it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from omnibus.workers.engines.protocol import Chunk, StageInput
from tests.support.held_stage import in_chunks

RATE = 8000
CHUNK = 1280
CHUNKS = 6
SOUND = (0.5 * np.sin(2 * np.pi * 500 * np.arange(CHUNK * CHUNKS) / RATE)).astype(np.float32)


def speak(stage_input: StageInput) -> Iterator[Chunk]:
    yield from in_chunks(stage_input, [{"audio": part, "sample_rate": RATE} for part in np.split(SOUND, CHUNKS)])


speak.outputs = {"audio": "audio", "sample_rate": "json"}  # type: ignore[attr-defined]
