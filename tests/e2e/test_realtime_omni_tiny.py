"""`/v1/realtime` on real engines, driven by the unmodified client of OpenAI: omni-tiny answers texts with texts and voices."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection

from omnibus.media import sound
from tools.omni_tiny.grading import grade_audio, grade_text
from tools.serving import Serving

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(360),
    pytest.mark.filterwarnings(r"ignore:connect\(\) must be used:DeprecationWarning"),  # the client of OpenAI does not
]
PROMPTS = ["draw a red circle left of a blue square", "draw a green triangle above a red circle"]
RATE, SAMPLE_RATE = 24_000, 8000
"""Hz of what is sent, and of omni-tiny's voice."""


@pytest_asyncio.fixture
async def talk(omni_tiny: Serving) -> AsyncIterator[AsyncRealtimeConnection]:
    async with (
        AsyncOpenAI(base_url=f"{omni_tiny.url}/v1", api_key="any", max_retries=0) as client,
        client.realtime.connect(model="omni-tiny") as made,
    ):
        assert (await made.recv()).type == "session.created"
        yield made


async def until(talk: AsyncRealtimeConnection, *kinds: str) -> list[Any]:
    """The events up to the first of these kinds."""
    events: list[Any] = []
    async with asyncio.timeout(120.0):
        while not events or events[-1].type not in kinds:
            events.append(await talk.recv())
    return events


async def answered(talk: AsyncRealtimeConnection, text: str) -> list[Any]:
    content: Any = [{"type": "input_text", "text": text}]
    await talk.conversation.item.create(item={"type": "message", "role": "user", "content": content})
    await talk.response.create()
    return await until(talk, "response.done", "error")


def joined(events: list[Any], what: str) -> list[str]:
    return [event.delta for event in events if event.type == f"response.{what}.delta"]


async def test_text_is_right_and_streamed_when_texts_are_asked_for(talk: AsyncRealtimeConnection) -> None:
    await talk.session.update(session={"type": "realtime", "output_modalities": ["text"]})
    await until(talk, "session.updated")
    events = await answered(talk, PROMPTS[0])
    done = events[-1].response
    assert (done.status, done.output[0].content[0].text) == ("completed", "".join(joined(events, "output_text")))
    assert grade_text(PROMPTS[0], done.output[0].content[0].text)
    assert done.usage.output_tokens > 0
    again = await answered(talk, PROMPTS[1])
    assert grade_text(PROMPTS[1], again[-1].response.output[0].content[0].text)


async def test_voice_and_its_transcript_are_right_when_nothing_else_is_asked_for(talk: AsyncRealtimeConnection) -> None:
    events = await answered(talk, PROMPTS[1])
    assert events[-1].response.status == "completed"
    assert grade_text(PROMPTS[1], "".join(joined(events, "output_audio_transcript")))
    pieces = joined(events, "output_audio")
    samples = np.frombuffer(b"".join(map(base64.b64decode, pieces)), "<i2") / 32768
    assert grade_audio(PROMPTS[1], sound.encoded(samples[None].astype(np.float32), RATE, at=SAMPLE_RATE))
    assert len(pieces) > 1, "it leaves while it is made"


async def test_answer_stops_and_another_follows_when_it_is_cancelled(talk: AsyncRealtimeConnection) -> None:
    content: Any = [{"type": "input_text", "text": PROMPTS[0]}]
    await talk.conversation.item.create(item={"type": "message", "role": "user", "content": content})
    await talk.response.create()
    await until(talk, "response.created")
    await talk.response.cancel()
    done = (await until(talk, "response.done"))[-1].response
    assert done.status == "cancelled"
    assert (await answered(talk, PROMPTS[0]))[-1].response.status == "completed"


async def test_sound_ends_with_a_typed_error_when_the_model_hears_nothing(talk: AsyncRealtimeConnection) -> None:
    await talk.session.update(session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})  # type: ignore[typeddict-item]
    await until(talk, "session.updated")
    await talk.input_audio_buffer.append(audio=base64.b64encode(bytes(RATE)).decode())
    await talk.input_audio_buffer.commit()
    await talk.response.create()
    done = (await until(talk, "response.done"))[-1].response
    assert (done.status, done.status_details.error.code) == ("failed", "engine_rejected")
