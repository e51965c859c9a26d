"""`python` stages of a pipeline that listens, writes and speaks, as slowly as a test wants it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

from msgspec.structs import replace

from omnibus.errors import EngineError
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire.envelope import TokenUsage
from omnibus.workers.engines.protocol import Finished, StageInput
from tests.support.media_stage import describe_media

heard: list[StageInput] = []
"""Inputs of the writer, each attempt's."""
attempts: Counter[str] = Counter()
go_on = threading.Event()
"""Set by a test that has what it waits for."""


def reset() -> None:
    heard.clear()
    attempts.clear()
    go_on.clear()


def write(stage_input: StageInput) -> Iterator[str]:
    """What was said and heard, word by word; `wait`: go on behind the first word when the test says so; `never`: fail."""
    heard.append(stage_input)
    said = describe_media(stage_input)
    attempts[said] += 1
    for number, word in enumerate(said.split()):
        yield f"{word} "
        if number == 0 and "wait" in said and not go_on.wait(30.0):
            raise EngineError("nobody came")
        if "never" in said or ("once" in said and attempts[said] == 1):
            raise EngineError("no more words")


def write_counted(stage_input: StageInput) -> Finished:
    """The text as it is, and how many tokens that took."""
    return Finished(outputs={"text": stage_input.request.text()}, usage=TokenUsage(3, 4))


def reader(name: str) -> PipelineSpec:
    """A pipeline whose writer delivers nothing: its speaker alone does."""
    spec = talker(name)
    writer = replace(
        spec.stages[0], model="tests.support.realtime_stages:write_counted", final_output=False, final_output_type=None
    )
    return replace(spec, stages=(writer, spec.stages[1]))


def talker(name: str, *, speaks: bool = True) -> PipelineSpec:
    """The pipeline of both stages, or of the writer alone."""
    writer = StageSpec(
        stage_id=0, name="writer", engine="python", model="tests.support.realtime_stages:write", slots=4,
        final_output=True, final_output_type="text",
    )  # fmt: skip
    speaker = StageSpec(
        stage_id=1, name="speaker", engine="python", model="tests.support.sound_stage:speak", slots=4,
        input_sources=(0,), final_output=True, final_output_type="audio",
    )  # fmt: skip
    return PipelineSpec(name=name, deadline=30.0, stages=(writer, speaker)[: 1 + speaks])
