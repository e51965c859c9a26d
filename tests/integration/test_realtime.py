"""`/v1/realtime`, driven by the unmodified client of OpenAI."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import numpy as np
import pytest
import pytest_asyncio
from openai import BadRequestError, OpenAI
from openai.resources.realtime.realtime import AsyncRealtimeConnection
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.frames import CloseCode

from omnibus.broker.connection import Connection
from omnibus.child_process import ChildProcess, start_child
from omnibus.frontdoor.http_connection import Limits
from omnibus.media import sound
from omnibus.orchestrator.service import OrchestratorService
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.requests.state import RequestState
from tests.support import held_stage, realtime_stages, sound_stage
from tests.support.front import Front, front
from tests.support.realtime_stages import reader, talker
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings(r"ignore:connect\(\) must be used:DeprecationWarning"),  # the client of OpenAI does not
]
RATE = 24_000
SECONDS = sound_stage.CHUNK * sound_stage.CHUNKS / sound_stage.RATE
"""Of an answer."""
WORDS = " ".join(f"word{number}" for number in range(60))


@pytest.fixture(autouse=True)
def _stages() -> None:
    realtime_stages.reset()
    held_stage.go_on.clear()


@pytest_asyncio.fixture
async def door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, talker(pipeline)) as made:
        yield made
        realtime_stages.go_on.set()
        held_stage.go_on.set()


@pytest_asyncio.fixture
async def talk(door: Front) -> AsyncIterator[AsyncRealtimeConnection]:
    async with door.openai.realtime.connect(model=door.spec.name) as made:
        assert (await made.recv()).type == "session.created"
        yield made


def tone(seconds: float) -> str:
    samples = (12_000 * np.sin(np.arange(int(RATE * seconds)) * 0.1)).astype("<i2")
    return base64.b64encode(samples.tobytes()).decode()


def silence(seconds: float) -> str:
    return base64.b64encode(bytes(2 * int(RATE * seconds))).decode()


async def until(talk: AsyncRealtimeConnection, *kinds: str) -> list[Any]:
    """The events up to the first of these kinds."""
    events: list[Any] = []
    async with asyncio.timeout(20.0):
        while not events or events[-1].type not in kinds:
            events.append(await talk.recv())
    return events


async def say(talk: AsyncRealtimeConnection, text: str) -> None:
    content: Any = [{"type": "input_text", "text": text}]
    await talk.conversation.item.create(item={"type": "message", "role": "user", "content": content})
    await until(talk, "conversation.item.done")


def deltas(events: list[Any], what: str) -> list[str]:
    return [event.delta for event in events if event.type == f"response.{what}.delta"]


def kinds(events: list[Any]) -> list[str]:
    """Kinds of events, each once where it repeats or two kinds of deltas alternate."""
    return list(dict.fromkeys(event.type for event in events))


SPOKEN = [
    "response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added",
    "response.output_audio_transcript.delta", "response.output_audio.delta", "response.output_audio.done",
    "response.output_audio_transcript.done", "response.content_part.done", "response.output_item.done",
    "conversation.item.done", "response.done",
]  # fmt: skip


async def test_usage_counts_the_stage_that_wrote_what_another_one_spoke(connection: Connection, pipeline: str) -> None:
    async with front(connection, reader(pipeline)) as door:
        async with door.openai.realtime.connect(model=door.spec.name) as talk:
            await say(talk, "tell me a story")
            await talk.response.create()
            usage = (await until(talk, "response.done"))[-1].response.usage
            assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (3, 4, 7)
        ask = {"model": door.spec.name, "voice": "alloy", "input": "read", "stream_format": "sse"}
        async with door.openai.audio.speech.with_streaming_response.create(**ask) as answer:
            lines = [line async for line in answer.iter_lines() if line.startswith("data: {")]
        done = json.loads(lines[-1].removeprefix("data: "))
        assert done == {
            "type": "speech.audio.done", "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
        }  # fmt: skip


async def test_other_ways_to_a_conversation_are_refused_with_the_one_there_is(door: Front) -> None:
    with pytest.raises(BadRequestError, match="openai-insecure-api-key") as refused:
        await door.openai.realtime.client_secrets.create(session={"type": "realtime"})
    assert refused.value.code == "invalid_request"


async def test_a_response_is_spoken_with_its_transcript_when_a_text_asks_for_it(
    talk: AsyncRealtimeConnection, door: Front
) -> None:
    await say(talk, "tell me a story")
    await talk.response.create()
    events = await until(talk, "response.done")
    assert kinds(events) == SPOKEN
    data = b"".join(base64.b64decode(piece) for piece in deltas(events, "output_audio"))
    assert len(data) == int(SECONDS * RATE) * 2, "the same bytes as of a whole answer"
    played = np.frombuffer(data, "<i2") / 32768
    wanted, _ = sound.decoded(sound.encoded(sound_stage.SOUND, sound_stage.RATE, at=RATE))
    assert np.abs(played[200:-200] - wanted[0][200 : len(played) - 200]).max() < 0.05
    done = events[-1].response
    assert (
        "".join(deltas(events, "output_audio_transcript")) == "tell me a story " == done.output[0].content[0].transcript
    )
    assert (done.status, done.status_details.type) == ("completed", "completed")
    assert len({event.event_id for event in events}) == len(events)
    result = await door.producer.result(door.spec.name, done.id.removeprefix("resp_"))
    assert (result.state, result.outputs[0].text) == (RequestState.DONE, "tell me a story ")


async def test_the_synchronous_client_is_served(door: Front) -> None:
    def converse() -> list[Any]:
        client = OpenAI(base_url=f"{door.server.url}/v1", api_key="any")
        with client, client.realtime.connect(model=door.spec.name) as talk:
            talk.recv()
            talk.session.update(session={"type": "realtime", "output_modalities": ["text"]})
            talk.conversation.item.create(
                item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "one two"}]}
            )
            talk.response.create()
            events = [talk.recv()]
            while events[-1].type != "response.done":
                events.append(talk.recv())
            return events

    events = await asyncio.to_thread(converse)
    assert events[0].session.output_modalities == ["text"]
    assert "".join(deltas(events, "output_text")) == "one two "
    assert events[-1].response.output[0].content[0].text == "one two "
    assert not deltas(events, "output_audio")


async def test_a_spoken_turn_is_heard_and_answered_when_the_speaker_falls_silent(talk: AsyncRealtimeConnection) -> None:
    for _ in range(5):
        await talk.input_audio_buffer.append(audio=tone(0.1))
    await talk.input_audio_buffer.append(audio=silence(0.7))
    events = await until(talk, "response.done", "error")
    assert [event.type for event in events[:6]] == [
        "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "input_audio_buffer.committed",
        "conversation.item.added", "conversation.item.done", "response.created",
    ]  # fmt: skip
    assert "".join(deltas(events, "output_audio_transcript")).split() == [";", "audio", "1", "s"]
    assert deltas(events, "output_audio")


async def test_sound_arrives_before_it_is_all_made_and_barging_in_cancels_its_request(
    talk: AsyncRealtimeConnection, door: Front
) -> None:
    await say(talk, "hold on")
    await talk.response.create()
    events = await until(talk, "response.output_audio.delta")
    rid = events[0].response.id.removeprefix("resp_")
    await talk.input_audio_buffer.append(audio=tone(0.2))
    events = await until(talk, "response.done")
    assert next(event.type for event in events if "delta" not in event.type) == "input_audio_buffer.speech_started"
    done = events[-1].response
    assert (done.status, done.status_details.reason) == ("cancelled", "turn_detected")
    assert done.output[0].status == "incomplete"
    await _cancelled(door, rid)
    held_stage.go_on.set()
    await talk.input_audio_buffer.append(audio=silence(0.7))
    after = await until(talk, "response.done")
    assert after[-1].response.status == "completed"
    assert {getattr(event, "response_id", None) for event in after} <= {None, after[-1].response.id}, (
        "nothing of the first"
    )


async def _cancelled(door: Front, rid: str) -> None:
    async def state() -> bool:
        return (await door.producer.result(door.spec.name, rid)).state is RequestState.CANCELLED

    await eventually(state, 10.0, what="the request is cancelled")


async def test_a_response_is_cancelled_by_its_client_and_the_next_one_answers(
    talk: AsyncRealtimeConnection, door: Front
) -> None:
    await say(talk, "please wait")
    await talk.response.create()
    events = await until(talk, "response.output_audio_transcript.delta")
    await talk.response.cancel()
    done = (await until(talk, "response.done"))[-1].response
    assert (done.status, done.status_details.reason) == ("cancelled", "client_cancelled")
    assert done.output[0].content[0].transcript == "".join(deltas(events, "output_audio_transcript")) == "please "
    await _cancelled(door, done.id.removeprefix("resp_"))
    realtime_stages.go_on.set()
    await talk.response.create(response={"output_modalities": ["text"]})
    events = await until(talk, "response.done")
    assert events[-1].response.status == "completed"
    roles = [message.role for message in realtime_stages.heard[-1].request.messages or ()]
    assert roles == ["user", "assistant"], "with what was said before the cancellation"


async def test_nothing_is_missing_or_comes_twice_when_the_stage_fails_in_mid_response(
    talk: AsyncRealtimeConnection,
) -> None:
    await say(talk, "once upon a time")
    await talk.response.create()
    events = await until(talk, "response.done")
    assert "".join(deltas(events, "output_audio_transcript")) == "once upon a time "
    assert len(b"".join(map(base64.b64decode, deltas(events, "output_audio")))) == int(SECONDS * RATE) * 2
    assert kinds(events) == SPOKEN
    assert events[-1].response.status == "completed"
    assert realtime_stages.attempts["once upon a time"] == 2


async def test_nothing_is_missing_or_comes_twice_when_the_worker_is_killed_in_mid_response(
    connection: Connection, pipeline: str
) -> None:
    writer = StageSpec(
        stage_id=0, name="writer", engine="sim", final_output=True, final_output_type="text",
        engine_args={"outputs": {"text": "text"}, "token_rate": 15},
    )  # fmt: skip
    spec = PipelineSpec(name=pipeline, deadline=60.0, heartbeat_timeout=1.5, stages=(writer,))
    async with front(connection, spec, workers=False) as door, _worker(connection, spec, "first") as first:
        orchestrator = asyncio.create_task(OrchestratorService(connection, spec).run())
        async with door.openai.realtime.connect(model=pipeline) as talk:
            await until(talk, "session.created")
            await say(talk, WORDS)
            await talk.response.create()
            before = await until(talk, "response.output_text.delta")
            async with _worker(connection, spec, "second"):
                first.kill()
                after = await until(talk, "response.done")
        orchestrator.cancel()
        await asyncio.gather(orchestrator, return_exceptions=True)
    assert "".join(deltas(before + after, "output_text")).split() == WORDS.split()
    assert after[-1].response.status == "completed"
    assert after[-1].response.output[0].content[0].text.split() == WORDS.split()
    assert [event.type for event in before + after].count("response.output_item.added") == 1
    assert len(deltas(before, "output_text")[-1].split()) < len(WORDS.split()) / 2, "it was in the middle"


@asynccontextmanager
async def _worker(connection: Connection, spec: PipelineSpec, name: str) -> AsyncIterator[ChildProcess]:
    """A replica in a process of its own."""
    words = ("-m", "tests.support.replica_process", connection.url, name, msgspec.json.encode(spec).decode())
    process = await start_child(sys.executable, *words)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_failure_ends_its_response_and_the_conversation_goes_on(talk: AsyncRealtimeConnection) -> None:
    await say(talk, "never")
    await talk.response.create()
    done = (await until(talk, "response.done"))[-1].response
    assert (done.status, done.status_details.error.code) == ("failed", "engine_error")
    await talk.response.cancel(event_id="mine")
    error = (await until(talk, "error"))[-1].error
    assert (error.event_id, error.code, error.param) == ("mine", "invalid_request", "response_id")
    for item in realtime_stages.heard[-1].request.messages or ():
        assert item.content == "never"
    await talk.response.create(response={"conversation": "none"})
    assert (await until(talk, "error"))[-1].error.param == "response.conversation"


async def test_a_request_is_cancelled_when_its_client_hangs_up(door: Front) -> None:
    async with door.openai.realtime.connect(model=door.spec.name) as talk:
        await until(talk, "session.created")
        await say(talk, "wait for me")
        await talk.response.create()
        rid = (await until(talk, "response.output_audio_transcript.delta"))[0].response.id.removeprefix("resp_")
    await _cancelled(door, rid)


async def test_conversations_are_closed_and_their_requests_cancelled_when_the_front_door_stops(
    talk: AsyncRealtimeConnection, door: Front
) -> None:
    await say(talk, "wait for me")
    await talk.response.create()
    rid = (await until(talk, "response.output_audio_transcript.delta"))[0].response.id.removeprefix("resp_")
    async with asyncio.timeout(10.0):
        await door.server.stop()
        with pytest.raises(ConnectionClosedError) as closed:
            await until(talk, "nothing more")
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == CloseCode.SERVICE_RESTART
    await _cancelled(door, rid)


async def test_a_model_that_does_not_exist_is_a_404_before_the_conversation_begins(door: Front) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with door.openai.realtime.connect(model="no-such-model"):
            pass
    response = refused.value.response
    assert (response.status_code, json.loads(response.body)["error"]["code"]) == (404, "model_not_found")


async def test_a_client_that_does_not_read_is_let_go(connection: Connection, pipeline: str) -> None:
    limits = Limits(unread_timeout=1.0)
    async with front(connection, talker(pipeline), workers=False, limits=limits) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.server.port, limit=1 << 12)
        try:
            head = f"GET /v1/realtime?model={pipeline} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            writer.write(f"{head}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            connections = door.server._server.server_state.connections  # type: ignore[union-attr]
            assert len(connections) == 1
            event = json.dumps({"type": "x" * 30_000}).encode()
            frame = b"\x81\xfe" + len(event).to_bytes(2, "big") + bytes(4) + event
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(20.0):
                    while True:  # each is answered with an error that has its words in it
                        writer.write(frame)
                        await writer.drain()
            await eventually(lambda: not connections, 20.0, what="the connection is gone")
        finally:
            writer.transport.abort()


async def test_a_socket_is_closed_when_its_client_sends_bytes_or_a_message_that_is_too_long(
    connection: Connection, pipeline: str
) -> None:
    async with front(connection, talker(pipeline), workers=False, limits=Limits(max_message=1000)) as door:
        address = f"ws://127.0.0.1:{door.server.port}/v1/realtime?model={pipeline}"
        for message, code in ((b"\0", CloseCode.UNSUPPORTED_DATA), ("x" * 1001, CloseCode.MESSAGE_TOO_BIG)):
            async with connect(address) as socket:
                await socket.recv()
                await socket.send(message)
                with pytest.raises(ConnectionClosedError) as closed:
                    await socket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == code
