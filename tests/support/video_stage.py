"""A `python` stage that films its prompt in chunks, and goes on behind the first one only when its test lets it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from omnibus.errors import EngineError
from omnibus.workers.engines.protocol import Chunk, StageInput
from tests.support.filmed_text import frames_of

FPS = 8.0
CHUNK = 2
"""Frames of a chunk."""
go_on = threading.Event()
"""Set by a test that has what it waits for."""
attempts: list[int] = []
"""Chunks that each attempt makes before it fails, of a prompt that asks for failures; the last attempt makes all."""


def film(stage_input: StageInput) -> Iterator[Chunk]:
    """`hold`: wait behind the first chunk; `fail`: fail as `attempts` says."""
    prompt = stage_input.request.text()
    frames = frames_of(prompt)
    most = attempts.pop(0) if "fail" in prompt and attempts else len(frames)
    for number in range(0, len(frames), CHUNK):
        if number >= most * CHUNK:
            raise EngineError("the camera broke")
        yield Chunk(outputs={"video": frames[number : number + CHUNK], "fps": FPS})
        if "hold" in prompt and number == 0 and not go_on.wait(30.0):
            raise EngineError("nobody came")


film.outputs = {"video": "video", "fps": "json"}  # type: ignore[attr-defined]
