"""Speech in every format, as a file and as events."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import soundfile

from omnibus.broker.connection import Connection
from tests.integration.test_voices import SPEECH, speaking
from tests.support.choosing_stage import SECONDS
from tests.support.front import Front, front

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, speaking(pipeline, SPEECH)) as made:
        yield made


@pytest.mark.parametrize("speech_format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
@pytest.mark.parametrize("stream_format", ["audio", "sse"])
async def test_speech_comes_in_every_format_as_a_file_and_as_events(
    door: Front, speech_format: Any, stream_format: Any
) -> None:
    asked = {"model": door.spec.name, "input": "hello", "voice": "deep", "response_format": speech_format}
    answer = await door.http.post("/v1/audio/speech", json={**asked, "stream_format": stream_format})
    assert answer.status_code == 200
    file = answer.content
    if stream_format == "sse":
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
        *deltas, done = map(json.loads, events)
        assert {delta["type"] for delta in deltas} == {"speech.audio.delta"}
        assert done["type"] == "speech.audio.done"
        file = b"".join(base64.b64decode(delta["audio"]) for delta in deltas)
    if speech_format == "pcm":
        assert len(file) == int(SECONDS * 24_000) * 2
        return
    from omnibus.media import sound  # noqa: PLC0415 as the product does

    samples, rate = soundfile.read(io.BytesIO(sound.converted(file, "wav")))
    assert len(samples) / rate == pytest.approx(SECONDS, abs=0.1)
