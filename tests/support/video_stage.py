"""A `python` stage that films its prompt in chunks, and goes on behind the first one only when its test lets it."""

from __future__ import annotations

from collections.abc import Iterator

from omnibus.workers.engines.protocol import Chunk, StageInput
from tests.support.filmed_text import frames_of
from tests.support.held_stage import in_chunks

FPS = 8.0
CHUNK = 2
"""Frames of a chunk."""


def film(stage_input: StageInput) -> Iterator[Chunk]:
    frames = frames_of(stage_input.request.text())
    parts = [frames[first : first + CHUNK] for first in range(0, len(frames), CHUNK)]
    yield from in_chunks(stage_input, [{"video": part, "fps": FPS} for part in parts])


film.outputs = {"video": "video", "fps": "json"}  # type: ignore[attr-defined]
