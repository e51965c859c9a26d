"""The partial text of a cancelled request: in the answer, and in the record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio

from omnibus.broker.connection import Connection
from omnibus.client.request_events import Ended, OutputArrived, TextPiece
from omnibus.requests.state import RequestState
from omnibus.wire.out import Tokens
from omnibus.wire.payload import RECORD_INLINE_LIMIT
from omnibus.wire.request import Request
from tests.support.flow import serving
from tests.support.front import Front, front, omni_sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration

PROMPT = " ".join(f"w{number:03}" for number in range(400))


@pytest_asyncio.fixture
async def front_door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, omni_sim(pipeline, token_rate=200.0)) as made:
        yield made


async def test_sent_text_is_in_the_answer_and_in_the_record_when_a_stream_is_cancelled(front_door: Front) -> None:
    request = Request(prompt=PROMPT, modalities=("text",))
    submission = await front_door.producer.submit(front_door.spec, request, rid="told")
    pieces = ""
    async with aclosing(submission.events()) as events:
        async for event in events:
            if isinstance(event, TextPiece):
                pieces += event.text
            if len(pieces) > 50:
                break
        cancelled = (await front_door.http.delete("/v1/requests/told")).json()
        rest = [event async for event in events]
    said = cancelled["outputs"][0]["items"][0]["text"]
    assert cancelled["status"] == "cancelled"
    assert cancelled["outputs"][0]["finish_reason"] == "abort"
    assert cancelled["outputs"][0]["usage"]["completion_tokens"] == len(said.split())
    assert PROMPT.startswith(said)
    assert len(said) >= len(pieces)
    again = (await front_door.http.delete("/v1/requests/told")).json()
    read = (await front_door.http.get("/v1/requests/told")).json()
    assert again["outputs"] == read["outputs"] == cancelled["outputs"]
    # Whoever follows has all pieces of the text, and then the text.
    assert isinstance(rest[-1], Ended)
    (arrived,) = [event.output for event in rest if isinstance(event, OutputArrived)]
    assert arrived.text == pieces + "".join(event.text for event in rest if isinstance(event, TextPiece))
    assert arrived.text.startswith(said)


async def test_sent_text_is_returned_when_no_client_streams(front_door: Front) -> None:
    await front_door.producer.submit(
        front_door.spec, Request(prompt=PROMPT, modalities=("text",), stream=False), rid="quiet"
    )
    cancelled = await eventually(lambda: cancelled_with_text(front_door, "quiet"))
    assert PROMPT.startswith(cancelled)


async def cancelled_with_text(front_door: Front, rid: str) -> str:
    """Cancel once the replica has something to say of it."""
    channel = await front_door.producer.channel(front_door.spec.name)
    with channel.mailbox(rid) as box:
        await channel.ask_sent_text(rid, 0, 0)
        try:
            async with asyncio.timeout(0.5):
                message, *_ = await box.take()
        except TimeoutError:  # nobody runs it yet
            return ""
    if not isinstance(message, Tokens) or not message.text:
        return ""
    result = await front_door.producer.cancel(front_door.spec.name, rid)
    return result.outputs[0].text


async def test_long_text_is_kept_in_whole_when_it_is_cancelled(connection: Connection, pipeline: str) -> None:
    spec = omni_sim(pipeline)
    word = "x" * 1000
    prompt = " ".join([word] * 300)  # most of it is still to come when it is cancelled
    slow = {"writer": {"token_rate": 400.0}}
    async with serving(connection, spec) as producer:
        request = Request(prompt=prompt, modalities=("text",), sampling_params=slow)
        submission = await producer.submit(spec, request, rid="long")
        length = 0
        async with aclosing(submission.events()) as events:
            async for event in events:
                length += len(event.text) if isinstance(event, TextPiece) else 0
                if length > RECORD_INLINE_LIMIT:
                    break
            result = await producer.cancel(pipeline, "long")
    assert result.state is RequestState.CANCELLED
    assert len(result.outputs[0].text) >= length
    assert prompt.startswith(result.outputs[0].text)


async def test_nothing_is_kept_when_no_text_was_sent(connection: Connection, pipeline: str) -> None:
    spec = omni_sim(pipeline, hang_on={"rid": "mute"})
    async with serving(connection, spec) as producer:
        await producer.submit(spec, Request(prompt=PROMPT, modalities=("text",)), rid="mute")
        result = await producer.cancel(pipeline, "mute")
    assert (result.state, result.outputs) == (RequestState.CANCELLED, ())
