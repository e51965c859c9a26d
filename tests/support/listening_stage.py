"""A `python` stage that says what it was given to transcribe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from omnibus.media import sound
from omnibus.wire.request import AudioPart, media_parts
from omnibus.workers.engines.protocol import StageInput


def transcribe(stage_input: StageInput, sampling: Mapping[str, Any]) -> Iterator[str]:
    """The seconds of the sound and the parameters, as JSON, in two pieces."""
    ((_, part),) = media_parts(stage_input.request.messages or ())
    assert isinstance(part, AudioPart)
    samples, rate = sound.decoded(part.data)
    text = json.dumps([samples.shape[1] / rate, {name: value for name, value in sampling.items() if value is not None}])
    yield text[:5]
    yield text[5:]
