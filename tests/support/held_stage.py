"""A `python` stage that makes a sound or a video in chunks: its test lets it go on, or has it fail, in the middle."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from omnibus.errors import EngineError
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.workers.engines.protocol import Chunk, StageInput

go_on = threading.Event()
"""Set by a test that has what it waits for."""
attempts: list[int] = []
"""Chunks that each attempt makes before it fails, of a prompt that asks for failures; the last attempt makes all."""


@contextmanager
def held() -> Iterator[None]:
    """Stages wait behind their first chunk until the test lets them go on; nothing is left waiting."""
    go_on.clear()
    attempts.clear()
    try:
        yield
    finally:
        go_on.set()


def spec_of(pipeline: str, name: str, model: str, modality: str) -> PipelineSpec:
    """The pipeline of one such stage, which delivers what it makes."""
    stage = StageSpec(
        stage_id=0, name=name, engine="python", model=model, slots=4, final_output=True, final_output_type=modality
    )
    return PipelineSpec(name=pipeline, deadline=60.0, stages=(stage,))


def in_chunks(stage_input: StageInput, chunks: Sequence[Mapping[str, Any]]) -> Iterator[Chunk]:
    """The outputs, a chunk each. A prompt with `hold` waits behind the first one; one with `fail` fails as `attempts` says."""
    prompt = stage_input.request.text()
    most = attempts.pop(0) if "fail" in prompt and attempts else len(chunks)
    for number, outputs in enumerate(chunks):
        if number == most:
            raise EngineError("the stage broke")
        yield Chunk(outputs=outputs)
        if "hold" in prompt and number == 0 and not go_on.wait(30.0):
            raise EngineError("nobody came")
