"""Sounds that a diffusion stage is given: without a rate, theirs or the class's, they are refused."""

from __future__ import annotations

import numpy as np
import pytest

from omnibus.errors import EngineRejected
from omnibus.media import sound
from omnibus.wire.request import AudioPart, Message
from omnibus.workers.engines.diffusers.media_inputs import of_messages, of_values
from omnibus.workers.engines.diffusers.signature import PipelineShape

pytestmark = pytest.mark.unit
SONGS = PipelineShape(name="Songs", parameters={"prompt": None, "src_audio": None}, has_text=True, sample_rate=16_000)
RATELESS = PipelineShape(name="Songs", parameters={"prompt": None, "src_audio": None}, has_text=True)
SAMPLES = np.zeros((2, 800), np.float32)


@pytest.mark.parametrize("rate", [None, 0, -8000, float("inf"), "high"])
def test_sound_of_an_earlier_stage_is_refused_when_its_rate_is_none(rate: object) -> None:
    """It is the request's fault, or the input processor's: another attempt would change nothing."""
    with pytest.raises(EngineRejected) as caught:
        of_values({"audio": SAMPLES, "sample_rate": rate}, SONGS)
    assert caught.value.param == "audio"


def test_sound_is_refused_when_its_class_does_not_say_a_rate() -> None:
    with pytest.raises(EngineRejected, match="at which rate") as caught:
        of_values({"audio": SAMPLES, "sample_rate": 8000}, RATELESS)
    assert caught.value.param == "audio"
    spoken = Message(role="user", content=(AudioPart(data=sound.encoded(SAMPLES, 8000)),))
    with pytest.raises(EngineRejected, match="at which rate") as caught:
        of_messages([spoken], RATELESS)
    assert caught.value.param == "messages[0].content[0].audio"
