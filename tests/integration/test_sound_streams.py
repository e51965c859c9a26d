"""Sound that leaves while its stage still speaks: over HTTP with the unmodified `openai` package, and to Python clients."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Iterator

import numpy as np
import openai
import pytest
import pytest_asyncio
import soundfile
from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.client.channel import Mailbox
from omnibus.client.media_chunk import MediaChunk
from omnibus.client.media_reader import read_media
from omnibus.client.request_events import Ended, MediaPiece, OutputArrived
from omnibus.errors import BrokerDenied
from omnibus.flows import writer
from omnibus.flows.flow_name import FlowName
from omnibus.flows.stored_flow import publish_behind
from omnibus.media import sound
from omnibus.payloads.packing import packed
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.state import RequestState
from omnibus.wire import stores, subjects
from omnibus.wire.chunk import Chunks
from omnibus.wire.out import Fence
from omnibus.wire.payload import ObjectKey, Payload
from omnibus.wire.request import Request
from tests.support import held_stage, sound_stage
from tests.support.front import Front, front

pytestmark = pytest.mark.integration
PCM = sound.encoded(sound_stage.SOUND, sound_stage.RATE, "pcm")


@pytest.fixture(autouse=True)
def held() -> Iterator[None]:
    with held_stage.held():
        yield


def spec_of(pipeline: str) -> PipelineSpec:
    return held_stage.spec_of(pipeline, "speaker", "tests.support.sound_stage:speak", "audio")


@pytest_asyncio.fixture
async def front_door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, spec_of(pipeline)) as made:
        yield made


def assert_is_the_sound(pcm: bytes) -> None:
    """But for the rounding of a whole file to 16 bits before it got another rate."""
    assert len(pcm) == len(PCM)
    off = np.frombuffer(pcm, "<i2").astype(int) - np.frombuffer(PCM, "<i2")
    assert np.abs(off).max() <= 1


def chat(text: str) -> dict[str, object]:
    return {
        "messages": [{"role": "user", "content": text}], "modalities": ["audio"], "stream": True,
        "audio": {"voice": "alloy", "format": "pcm16"},
    }  # fmt: skip


async def test_a_chats_first_sound_arrives_while_its_stage_still_speaks(front_door: Front) -> None:
    stream = await front_door.openai.chat.completions.create(model=front_door.spec.name, **chat("hold"))
    pieces = []
    async for chunk in stream:
        audio = getattr(chunk.choices[0].delta, "audio", None) if chunk.choices else None
        if audio:
            pieces.append(audio)
            held_stage.go_on.set()  # without a first piece the stage would never go on
    assert len(pieces) > 2
    assert pieces[0].id.startswith("audio-")
    assert_is_the_sound(b"".join(base64.b64decode(piece.data) for piece in pieces))


async def test_speech_begins_while_its_stage_still_speaks(front_door: Front) -> None:
    ask = {"model": front_door.spec.name, "voice": "alloy", "input": "hold", "response_format": "pcm"}
    async with front_door.openai.audio.speech.with_streaming_response.create(**ask) as answer:
        pieces = []
        async for piece in answer.iter_bytes():
            pieces.append(piece)
            held_stage.go_on.set()
    assert answer.headers["content-type"] == "audio/pcm"
    assert_is_the_sound(b"".join(pieces))


async def test_events_of_speech_arrive_while_its_stage_still_speaks_also_at_a_synchronous_client(
    front_door: Front,
) -> None:
    def ask() -> list[dict[str, object]]:
        client = openai.OpenAI(base_url=f"{front_door.server.url}/v1", api_key="any", max_retries=0, timeout=30.0)
        events = []
        with (
            client,
            client.audio.speech.with_streaming_response.create(
                model=front_door.spec.name, voice="alloy", input="hold", response_format="pcm", stream_format="sse"
            ) as answer,
        ):
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    events.append(json.loads(line.removeprefix("data: ")))
                    held_stage.go_on.set()
        return events

    *deltas, done = await asyncio.to_thread(ask)
    assert len(deltas) > 2
    assert {delta["type"] for delta in deltas} == {"speech.audio.delta"}
    assert_is_the_sound(b"".join(base64.b64decode(str(delta["audio"])) for delta in deltas))
    assert done["type"] == "speech.audio.done"
    assert set(done["usage"]) == {"input_tokens", "output_tokens", "total_tokens"}  # type: ignore[call-overload]


@pytest.mark.parametrize("wanted", ["wav", "flac", "mp3", "opus", "aac"])
async def test_a_streamed_file_can_be_played_in_every_format(front_door: Front, wanted: str) -> None:
    speech = await front_door.openai.audio.speech.create(
        model=front_door.spec.name, voice="alloy", input="speak", response_format=wanted
    )
    assert speech.response.headers["content-type"] == sound.FORMATS[wanted].media_type
    assert "content-length" not in speech.response.headers
    samples, rate = sound.decoded(speech.content)
    assert samples.shape[1] / rate == pytest.approx(len(sound_stage.SOUND) / sound_stage.RATE, abs=0.2)
    if wanted == "wav":
        np.testing.assert_allclose(soundfile.read(io.BytesIO(speech.content))[0], sound_stage.SOUND, atol=1e-4)


async def test_speech_is_whole_and_nothing_is_stored_for_its_caller_when_it_is_not_streamed(
    connection: Connection, front_door: Front
) -> None:
    stored = []
    watch = await connection.subscribe(f"{subjects.chunk_subjects(front_door.spec.name)}", stored.append)
    body = {"model": front_door.spec.name, "input": "speak", "response_format": "pcm", "stream": False}
    whole = await front_door.http.post("/v1/audio/speech", json=body)
    await front_door.openai.chat.completions.create(model=front_door.spec.name, **{**chat("speak"), "stream": False})
    await watch.unsubscribe()
    assert_is_the_sound(whole.content)
    assert int(whole.headers["content-length"]) == len(PCM)
    assert "speaker;dur=" in whole.headers["server-timing"]
    assert stored == []


async def test_samples_come_as_they_are_made_when_a_stream_of_them_is_asked_for(front_door: Front) -> None:
    body = {"model": front_door.spec.name, "input": "speak", "response_format": "pcm", "stream": True}
    streamed = await front_door.http.post("/v1/audio/speech", json=body)
    assert_is_the_sound(streamed.content)
    assert "content-length" not in streamed.headers


async def test_nothing_is_heard_twice_when_an_attempt_begins_again(front_door: Front) -> None:
    held_stage.attempts += [3, 2]
    ask = {"model": front_door.spec.name, "voice": "alloy", "input": "fail", "response_format": "pcm"}
    speech = await front_door.openai.audio.speech.create(**ask)
    assert held_stage.attempts == []
    assert_is_the_sound(speech.content)


async def test_the_rest_comes_from_the_output_when_the_flow_is_removed(
    connection: Connection, front_door: Front
) -> None:
    request = Request(prompt="hold", modalities=("audio",))
    submission = await front_door.producer.submit(front_door.spec, request)
    pieces, others = [], []
    async for event in submission.events():
        if isinstance(event, MediaPiece):
            pieces.append(event.values["audio"])
            if len(pieces) == 1:
                purged = await connection.request(
                    f"$JS.API.STREAM.PURGE.{stores.chunks_stream(front_door.spec.name)}", b""
                )
                assert b'"success":true' in purged.data
                held_stage.go_on.set()
        else:
            others.append(event)
    np.testing.assert_allclose(np.concatenate(pieces), sound_stage.SOUND, atol=1e-4)
    assert [type(event) for event in others] == [OutputArrived, Ended]


async def test_a_sound_that_cannot_be_read_meanwhile_is_counted(connection: Connection, front_door: Front) -> None:
    held_stage.go_on.set()
    request = Request(prompt="hello", modalities=("audio",))
    submission = await front_door.producer.submit(front_door.spec, request)
    await submission.result()
    channel = await front_door.producer.channel(front_door.spec.name)
    record = (await channel.entry(submission.rid, None)).record
    ticket = replace(record.ticket, nonce="damaged", deadline=record.ticket.deadline + 60)
    gap = Chunks(fence=Fence(1, 1, 1), first=3)
    await publish_behind(connection, FlowName.of(ticket, 0, "speaker"), gap, 0)
    skipped = connection.metrics.flows_skipped.labels(pipeline=front_door.spec.name)._value.get
    before = skipped()
    await read_media(channel, ticket, 0, Mailbox())
    assert skipped() == before + 1


async def test_no_piece_waits_for_one_behind_it_that_lies_elsewhere(connection: Connection, front_door: Front) -> None:
    held_stage.go_on.set()
    submission = await front_door.producer.submit(front_door.spec, Request(prompt="hello", modalities=("audio",)))
    await submission.result()
    channel = await front_door.producer.channel(front_door.spec.name)
    record = (await channel.entry(submission.rid, None)).record
    ticket = replace(record.ticket, nonce="elsewhere", deadline=record.ticket.deadline + 60)
    here = [await packed(value) for value in (np.ones(4, np.float32), sound_stage.RATE)]
    samples, rate = (Payload.inline(b"".join(map(bytes, one.parts)), one.media_type) for one in here)
    lost = Payload(media_type=samples.media_type, nbytes=16, locations=(ObjectKey("lost"),))
    chunks = tuple({"audio": audio, "sample_rate": rate} for audio in (samples, samples, lost))
    await publish_behind(
        connection, FlowName.of(ticket, 0, "speaker"), Chunks(fence=Fence(1, 1, 1), first=0, chunks=chunks), 0
    )
    box = Mailbox()
    reading = asyncio.create_task(read_media(channel, ticket, 0, box))
    (piece,) = await asyncio.wait_for(box.take(), 30)
    assert isinstance(piece, MediaChunk)
    assert piece.frames.tolist() == [1.0] * 8, "the two that are here are one"
    piece.taken.set()
    await asyncio.wait_for(reading, 30)


@pytest.mark.parametrize("why", ["no stream", "denied"])
async def test_the_sound_comes_from_the_output_when_the_broker_takes_no_flow(
    connection: Connection, front_door: Front, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """As one does that an earlier version has laid out, or that knows a worker's earlier credentials."""
    if why == "no stream":
        await connection.api(f"STREAM.DELETE.{stores.chunks_stream(front_door.spec.name)}")
    else:

        async def denied(*_: object) -> int:
            raise BrokerDenied.of("publish", "omni.p.chunk")

        monkeypatch.setattr(writer, "publish_behind", denied)
    held_stage.go_on.set()
    request = Request(prompt="hello", modalities=("audio",))
    events = [event async for event in (await front_door.producer.submit(front_door.spec, request)).events()]
    assert isinstance(events[-1], Ended)
    assert events[-1].result.state is RequestState.DONE, events[-1].result.failure
    assert any(isinstance(event, OutputArrived) for event in events)


async def test_an_error_before_the_first_sound_has_its_own_status(front_door: Front) -> None:
    held_stage.attempts += [0] * 10
    ask = {"model": front_door.spec.name, "voice": "alloy", "input": "fail", "response_format": "pcm"}
    with pytest.raises(openai.InternalServerError):
        await front_door.openai.audio.speech.create(**ask)


async def test_a_body_ends_in_the_middle_when_its_stage_fails_after_the_first_sound(front_door: Front) -> None:
    held_stage.attempts += [2] * 10
    body = {"model": front_door.spec.name, "input": "fail", "response_format": "pcm"}
    client = openai.OpenAI(base_url=f"{front_door.server.url}/v1", api_key="any", max_retries=0, timeout=30.0)

    def ask() -> None:
        client.audio.speech.create(**body, voice="alloy")

    with client, pytest.raises(Exception, match=r"peer closed|incomplete|onnection"):
        await asyncio.to_thread(ask)
