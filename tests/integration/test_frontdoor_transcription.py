"""Sounds are written down over HTTP: the unmodified `openai` package, forms as other clients send them, and refusals."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator

import numpy as np
import openai
import pytest
import pytest_asyncio

from omnibus.broker.connection import Connection
from omnibus.media import sound
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from tests.support.front import Front, front
from tests.support.listening_stage import TIMED

pytestmark = pytest.mark.integration
SPOKEN = sound.encoded(np.zeros(4000, np.float32), 8000, "mp3")


@pytest_asyncio.fixture
async def front_door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, spec_of(pipeline, "transcribe")) as made:
        yield made


@pytest_asyncio.fixture
async def timed(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, spec_of(pipeline, "transcribe_timed")) as made:
        yield made


def spec_of(pipeline: str, function: str) -> PipelineSpec:
    stage = StageSpec(
        stage_id=0, name="listener", engine="python", model=f"tests.support.listening_stage:{function}", slots=4,
        final_output=True, final_output_type="text",
    )  # fmt: skip
    return PipelineSpec(name=pipeline, deadline=60.0, stages=(stage,))


def file() -> tuple[str, io.BytesIO]:
    return "spoken.mp3", io.BytesIO(SPOKEN)


def seconds_and(text: str) -> dict[str, object]:
    """The parameters of the stage, which had the whole sound."""
    seconds, sampling = json.loads(text)
    assert seconds == pytest.approx(0.5, abs=0.2)
    return dict(sampling)


async def test_sound_is_transcribed_with_its_parameters(front_door: Front) -> None:
    asked = {"language": "de", "prompt": "Omnibus", "temperature": 0.5}
    made = await front_door.openai.audio.transcriptions.create(model=front_door.spec.name, file=file(), **asked)
    assert seconds_and(made.text) == asked
    assert made.usage is not None
    assert made.usage.type == "tokens"
    plain = await front_door.openai.audio.transcriptions.create(model=front_door.spec.name, file=file())
    assert seconds_and(plain.text) == {}


async def test_sound_is_translated(front_door: Front) -> None:
    made = await front_door.http.post(
        "/v1/audio/translations", data={"model": front_door.spec.name}, files={"file": SPOKEN}
    )
    assert seconds_and(made.json()["text"]) == {"task": "translate"}


async def test_text_is_the_answer_itself_when_it_is_asked_for(front_door: Front) -> None:
    made = await front_door.openai.audio.transcriptions.create(
        model=front_door.spec.name, file=file(), response_format="text"
    )
    assert seconds_and(str(made)) == {}


async def test_parts_of_the_text_have_times_in_a_verbose_answer(timed: Front) -> None:
    transcriptions = timed.openai.audio.transcriptions
    plain = await transcriptions.create(model=timed.spec.name, file=file(), response_format="verbose_json")
    words = await transcriptions.create(
        model=timed.spec.name, file=file(), response_format="verbose_json", timestamp_granularities=["word"]
    )
    both = await transcriptions.create(
        model=timed.spec.name, file=file(), response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )

    assert (plain.text, plain.language, plain.duration) == ("Ja. gut", "german", TIMED.duration)
    assert [(one.id, one.start, one.end, one.text) for one in plain.segments or ()] == [
        (number, one.start, one.end, one.text) for number, one in enumerate(TIMED.segments)
    ]
    assert plain.words is None
    assert [(one.word, one.start, one.end) for one in words.words or ()] == [("Ja", 0.0, 0.42)]
    assert words.segments is None
    assert (both.segments, both.words) == (plain.segments, words.words)
    assert plain.usage is not None
    assert (plain.usage.type, plain.usage.seconds) == ("duration", TIMED.duration)
    translated = await timed.http.post(
        "/v1/audio/translations", data={"model": timed.spec.name, "response_format": "verbose_json"},
        files={"file": SPOKEN},
    )  # fmt: skip
    assert (translated.json()["task"], len(translated.json()["segments"])) == ("translate", 2)


async def test_text_comes_as_subtitles(timed: Front) -> None:
    made = {
        wanted: str(
            await timed.openai.audio.transcriptions.create(model=timed.spec.name, file=file(), response_format=wanted)
        )
        for wanted in ("srt", "vtt")
    }
    assert made["srt"] == (
        "1\n00:00:00,000 --> 00:00:01,500\nJa -> <b>\n\n2\n01:02:03,250 --> 01:02:05,500\ngut & schoen so\n"
    )
    assert made["vtt"] == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nJa -&gt; &lt;b&gt;\n\n"
        "01:02:03.250 --> 01:02:05.500\ngut &amp; schoen so\n"
    )


async def test_pieces_of_the_text_come_as_events(front_door: Front) -> None:
    stream = await front_door.openai.audio.transcriptions.create(model=front_door.spec.name, file=file(), stream=True)
    events = [event async for event in stream]
    *deltas, done = events
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert done.type == "transcript.text.done"
    assert "".join(event.delta for event in deltas) == done.text
    assert seconds_and(done.text) == {}
    assert done.usage is not None
    assert done.usage.type == "tokens"


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"response_format": "srt"}, 400, "response_format"),
        ({"response_format": "vtt"}, 400, "response_format"),
        ({"response_format": "lrc"}, 400, "response_format"),
        ({"response_format": "verbose_json", "timestamp_granularities[]": "word"}, 400, "timestamp_granularities"),
        ({"response_format": "verbose_json", "timestamp_granularities[]": "page"}, 400, "timestamp_granularities[0]"),
        ({"response_format": "srt", "timestamp_granularities[]": "segment"}, 400, "timestamp_granularities"),
        ({"response_format": "verbose_json"}, 400, "response_format"),
        ({"temperature": "warm"}, 400, "temperature"),
        ({"timestamp_granularities[]": "word"}, 400, "timestamp_granularities"),
        ({"include[]": "logprobs"}, 400, "include"),
        ({"response_format": "text", "stream": "true"}, 400, "response_format"),
    ],
)
async def test_refusal_names_the_field_of_the_form(
    front_door: Front, fields: dict[str, str], status: int, param: str
) -> None:
    answer = await front_door.http.post(
        "/v1/audio/transcriptions", data={"model": front_door.spec.name, **fields}, files={"file": SPOKEN}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize("data", [b"", b"no sound at all"])
async def test_file_that_is_no_sound_is_refused(front_door: Front, data: bytes) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await front_door.openai.audio.transcriptions.create(
            model=front_door.spec.name, file=("spoken.wav", io.BytesIO(data))
        )
    assert caught.value.param == "file"


async def test_body_that_is_no_form_is_refused(front_door: Front) -> None:
    urlencoded = {"content": b"%zz&file", "headers": {"content-type": "application/x-www-form-urlencoded"}}
    broken = {"content": b"x", "headers": {"content-type": "multipart/form-data"}}
    for body in ({"json": {"file": "x"}}, urlencoded, broken):
        answer = await front_door.http.post("/v1/audio/transcriptions", **body)
        assert answer.status_code == 400, answer.text
        assert "form" in answer.json()["error"]["message"]
        assert body is not urlencoded or "multipart/form-data" in answer.json()["error"]["message"]
    missing = await front_door.http.post("/v1/audio/transcriptions", data={"a": "b"}, files={"other": b"x"})
    assert missing.status_code == 400


async def test_same_form_under_the_same_key_is_one_request(front_door: Front) -> None:
    """Each sending has a boundary of its own."""
    ids = []
    for prompt in ("a", "a", "b"):
        answer = await front_door.http.post(
            "/v1/audio/transcriptions", data={"model": front_door.spec.name, "prompt": prompt}, files={"file": SPOKEN},
            headers={"Idempotency-Key": "once"},
        )  # fmt: skip
        ids.append((answer.status_code, answer.headers.get("Omnibus-Request-Id")))
    assert ids[0] == ids[1]
    assert [status for status, _ in ids] == [200, 200, 409]
