"""A `python` stage that says what it was given to transcribe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from omnibus.media import sound
from omnibus.wire.request import AudioPart, media_parts
from omnibus.wire.timed_text import TRANSCRIPT, TimedSegment, TimedText, TimedWord
from omnibus.workers.engines.protocol import StageInput, TextDelta


def transcribe(stage_input: StageInput, sampling: Mapping[str, Any]) -> Iterator[str]:
    """The seconds of the sound and the parameters, as JSON, in two pieces."""
    ((_, part),) = media_parts(stage_input.request.messages or ())
    assert isinstance(part, AudioPart)
    samples, rate = sound.decoded(part.data)
    text = json.dumps([samples.shape[1] / rate, {name: value for name, value in sampling.items() if value is not None}])
    yield text[:5]
    yield text[5:]


TIMED = TimedText(
    language="german", duration=3725.5, words=(TimedWord(word="Ja", start=0.0, end=0.42),),
    segments=(
        TimedSegment(text=" Ja --> <b>", start=0.0, end=1.5, tokens=(4, 5)),
        TimedSegment(text="gut & schoen\n\nso", start=3723.25, end=3725.5),
    ),
)  # fmt: skip


def transcribe_timed(_stage_input: StageInput, sampling: Mapping[str, Any]) -> Iterator[TextDelta]:
    """A text with the times of its parts, where those are asked for."""
    is_timed = "timestamp_granularities" in sampling
    yield TextDelta(text="Ja. gut", fields={TRANSCRIPT: TIMED.encoded()} if is_timed else {})
