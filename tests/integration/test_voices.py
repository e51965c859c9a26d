"""Voices, speed and instructions of speech, where a pipeline declares them, by the unmodified `openai` package."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import openai
import pytest
import pytest_asyncio
import soundfile

from omnibus.broker.connection import Connection
from omnibus.pipeline.spec import PipelineSpec, SpeechSpec, StageSpec
from tests.support.choosing_stage import SECONDS
from tests.support.front import Front, front, omni_sim

pytestmark = pytest.mark.integration
SPEECH = SpeechSpec(voices={"deep": {"hertz": 200}, "bright": {"hertz": 1000}}, speed="rate", instructions="manner")


def speaking(name: str, speech: SpeechSpec | None) -> PipelineSpec:
    stage = StageSpec(
        stage_id=0, name="speaker", engine="python", model="tests.support.choosing_stage:speak", final_output=True,
        final_output_type="audio", engine_args={"outputs": {"audio": "audio", "sample_rate": "json"}}, speech=speech,
    )  # fmt: skip
    return PipelineSpec(name=name, deadline=30.0, stages=(stage,))


@pytest_asyncio.fixture
async def door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, speaking(pipeline, SPEECH)) as made:
        yield made


async def spoken(door: Front, voice: Any, **more: Any) -> tuple[int, float, float]:
    """Pitch in Hertz, length in seconds and loudness of the sound."""
    answer = await door.openai.audio.speech.create(
        model=door.spec.name, input="hello", voice=voice, response_format="flac", **more
    )
    return _heard(answer.content)


def _heard(file: bytes) -> tuple[int, float, float]:
    samples, rate = soundfile.read(io.BytesIO(file))
    strongest = np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples)
    return round(strongest / 100) * 100, round(len(samples) / rate, 2), round(float(np.abs(samples).max()), 1)


async def test_a_text_is_spoken_by_the_voice_at_the_speed_and_in_the_manner_that_are_asked_for(door: Front) -> None:
    assert await spoken(door, "deep") == (200, SECONDS, 0.8)
    assert await spoken(door, {"id": "bright"}) == (1000, SECONDS, 0.8)
    assert await spoken(door, "deep", speed=2.0, instructions="whisper") == (200, SECONDS / 2, 0.1)
    override = {"sampling_params": {"speaker": {"hertz": 500}}}
    assert (await spoken(door, "deep", extra_body=override))[0] == 500


async def test_a_chat_is_spoken_by_the_voice_that_it_names(door: Front) -> None:
    def chat(voice: str) -> Any:
        return door.openai.chat.completions.create(
            model=door.spec.name, messages=[{"role": "user", "content": "hello"}], modalities=["audio"],
            audio={"voice": voice, "format": "flac"},
        )  # fmt: skip

    audio = (await chat("bright")).choices[0].message.audio
    assert audio is not None
    assert _heard(base64.b64decode(audio.data))[0] == 1000
    with pytest.raises(openai.BadRequestError) as refusal:
        await chat("alloy")
    assert refusal.value.param == "audio.voice"


async def test_an_unknown_voice_is_refused_with_a_list_of_those_there_are(door: Front) -> None:
    with pytest.raises(openai.BadRequestError, match="deep, bright") as refusal:
        await spoken(door, "alloy")
    assert refusal.value.param == "voice"
    listed = await door.http.get("/v1/audio/voices", params={"model": door.spec.name})
    assert listed.json() == {"voices": ["deep", "bright"], "uploaded_voices": []}
    assert (await door.http.get("/v1/audio/voices")).json() == listed.json()


async def test_voices_are_listed_of_models_that_speak_alone(connection: Connection, pipeline: str) -> None:
    async with front(
        connection, omni_sim(pipeline), idle=(speaking(f"{pipeline}-other", SPEECH),), workers=False
    ) as door:
        mute = await door.http.get("/v1/audio/voices", params={"model": pipeline})
        which = await door.http.get("/v1/audio/voices")
        unknown = await door.http.get("/v1/audio/voices", params={"model": "nobody"})
    assert mute.json() == {"voices": [], "uploaded_voices": []}
    assert (which.status_code, which.json()["error"]["param"]) == (400, "model")
    assert unknown.status_code == 404


@pytest.mark.parametrize(("asked", "param"), [({"speed": 1.5}, "speed"), ({"instructions": "sing"}, "instructions")])
async def test_speed_and_instructions_are_refused_when_no_stage_takes_them(
    connection: Connection, pipeline: str, asked: dict[str, Any], param: str
) -> None:
    async with front(connection, speaking(pipeline, None)) as door:
        assert await spoken(door, "any name", speed=1.0, instructions="") == (300, SECONDS, 0.8)
        with pytest.raises(openai.BadRequestError) as refusal:
            await spoken(door, "any name", **asked)
    assert refusal.value.param == param
