"""Requests by id: status, cancelling, idempotency, callers that go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.client import channel
from omnibus.client.request_events import Result
from omnibus.errors import UnknownRequest
from omnibus.frontdoor.context import Options
from omnibus.frontdoor.idempotency_keys import keyed_rid
from omnibus.ledger.work_queue import WorkQueue
from omnibus.wire import stores
from tests.support.front import Front, front, omni_sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration

HANG = {"sampling_params": {"writer": {"hang_on": {"rid": "."}}}}


@pytest_asyncio.fixture
async def front_door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, omni_sim(pipeline)) as made:
        yield made


def body(front_door: Front, text: str = "hello there", **fields: Any) -> dict[str, Any]:
    return {"model": front_door.spec.name, "messages": [{"role": "user", "content": text}], **fields}


def rid_of(front_door: Front, key: str) -> str:
    return keyed_rid("default", front_door.spec.name, key)


async def state_of(front_door: Front, rid: str) -> str | None:
    try:
        result: Result = await front_door.producer.result(front_door.spec.name, rid)
    except UnknownRequest:
        return None
    return result.state.value


async def test_a_finished_request_is_read_by_its_id(front_door: Front) -> None:
    answered = await front_door.http.post("/v1/chat/completions", json=body(front_door, modalities=["text", "audio"]))
    read = await front_door.http.get(f"/v1/requests/{answered.headers['x-request-id']}")
    record = read.json()
    assert (read.status_code, record["status"], record["model"]) == (200, "done", front_door.spec.name)
    by_modality = {output["modality"]: output for output in record["outputs"]}
    assert by_modality["text"]["items"] == [{"media_type": "text/plain", "text": "hello there"}]
    assert by_modality["audio"]["items"][0]["media_type"] == "audio/wav"
    assert {stage["stage"] for stage in record["stages"]} == {"writer", "speaker"}


async def test_the_same_key_gives_the_same_answer_and_another_body_a_conflict(front_door: Front) -> None:
    headers = {"Idempotency-Key": "order 7/ä".encode("latin-1")}
    first = await front_door.http.post("/v1/chat/completions", json=body(front_door), headers=headers)
    again = await front_door.http.post("/v1/chat/completions", json=body(front_door), headers=headers)
    other = await front_door.http.post("/v1/chat/completions", json=body(front_door, "something else"), headers=headers)
    assert first.json() == again.json()
    assert first.headers["x-request-id"] == again.headers["x-request-id"]
    assert (other.status_code, other.json()["error"]["code"]) == (409, "request_conflict")
    assert other.json()["error"]["param"] == "Idempotency-Key"
    assert "request id" not in other.json()["error"]["message"], "the caller knows its key only"


@pytest.mark.parametrize(
    ("path", "fields", "other"),
    [
        ("/v1/images/generations", {"prompt": "x"}, {"output_format": "webp"}),
        ("/v1/images/generations", {"prompt": "x"}, {"response_format": "url"}),
        ("/v1/audio/speech", {"input": "x"}, {"response_format": "flac"}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "modalities": ["audio"]},
            {"audio": {"format": "flac"}},
        ),
        ("/v1/completions", {"prompt": "x"}, {"metadata": {"a": "b"}}),
    ],
)
async def test_the_same_key_is_a_conflict_when_only_the_shape_of_the_answer_differs(
    front_door: Front, path: str, fields: dict[str, Any], other: dict[str, Any]
) -> None:
    headers, asked = {"Idempotency-Key": "shape"}, {"model": front_door.spec.name, **fields}
    first = await front_door.http.post(path, json=asked, headers=headers)
    again = await front_door.http.post(path, json=dict(reversed(asked.items())) | {"seed": None}, headers=headers)
    conflict = await front_door.http.post(path, json={**asked, **other}, headers=headers)
    assert (first.status_code, again.content) == (200, first.content)
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "request_conflict")


async def test_the_same_key_joins_the_running_request_when_it_is_not_done(front_door: Front) -> None:
    slow = body(front_door, "one two three four", sampling_params={"writer": {"latency": 0.3}})
    headers = {"Idempotency-Key": "join"}
    both = await asyncio.gather(
        *(front_door.http.post("/v1/chat/completions", json=slow, headers=headers) for _ in range(2))
    )
    assert [answer.status_code for answer in both] == [200, 200]
    assert both[0].json() == both[1].json()


async def test_a_repeated_stream_says_the_whole_text_when_the_request_is_done(front_door: Front) -> None:
    ask = body(front_door, "one two three", stream=True)
    headers = {"Idempotency-Key": "streamed"}
    client = front_door.openai.with_options(default_headers=headers)
    texts = []
    for _ in range(2):
        stream = await client.chat.completions.create(**ask)
        texts.append("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))
    assert texts == ["one two three", "one two three"]


async def test_cancelling_is_acknowledged_and_seen_by_the_waiting_caller(front_door: Front) -> None:
    headers = {"Idempotency-Key": "cancel me"}
    waiting = asyncio.create_task(
        front_door.http.post("/v1/chat/completions", json=body(front_door, **HANG), headers=headers)
    )
    rid = rid_of(front_door, "cancel me")
    await eventually(lambda: state_of(front_door, rid), what="accepted")
    cancelled = await front_door.http.delete(f"/v1/requests/{rid}")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    answer = await waiting
    assert (answer.status_code, answer.json()["error"]["code"]) == (499, "cancelled")
    again = await front_door.http.delete(f"/v1/requests/{rid}")
    assert again.json()["status"] == "cancelled"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_goes_on_without_its_caller_when_it_has_a_key(front_door: Front, stream: bool) -> None:
    slow = body(front_door, "still here", stream=stream, sampling_params={"writer": {"latency": 0.5}})
    headers = {"Idempotency-Key": f"later {stream}"}
    rid = rid_of(front_door, f"later {stream}")
    calling = asyncio.create_task(front_door.http.post("/v1/chat/completions", json=slow, headers=headers))
    await eventually(lambda: state_of(front_door, rid), what="accepted")
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)

    async def done() -> bool:
        return await state_of(front_door, rid) == "done"

    await eventually(done, what="done without its caller")
    answer = await front_door.http.post("/v1/chat/completions", json=slow, headers=headers)
    read = await front_door.http.get(f"/v1/requests/{answer.headers['x-request-id']}")
    assert answer.status_code == 200
    assert read.json()["outputs"][0]["items"][0]["text"] == "still here"


async def test_a_request_is_cancelled_when_its_caller_leaves_the_stream(front_door: Front) -> None:
    slow = {"sampling_params": {"writer": {"token_rate": 2.0}}}
    asked = body(front_door, "one two three four", stream=True)
    stream = await front_door.openai.chat.completions.create(**asked, extra_body=slow)
    rid = stream.response.headers["x-request-id"]
    await stream.close()

    async def cancelled() -> bool:
        return await state_of(front_door, rid) == "cancelled"

    await eventually(cancelled, what="cancelled")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_cancelled_when_its_caller_stops_waiting(
    front_door: Front, connection: Connection, stream: bool
) -> None:
    """In a stream, before its first event."""
    before = await _cancelled_count(front_door)
    with pytest.raises(httpx.ReadTimeout):
        await front_door.http.post("/v1/chat/completions", json=body(front_door, stream=stream, **HANG), timeout=0.5)

    async def counted() -> bool:
        return await _cancelled_count(front_door) > before

    await eventually(counted, what="answered 499 to nobody")
    (rid,) = await Bucket(connection, stores.requests_bucket(front_door.spec.name)).keys()
    assert await state_of(front_door, rid) == "cancelled"
    assert (await WorkQueue(connection, front_door.spec.name).traffic()).messages == 0


async def test_a_request_that_misses_its_deadline_is_a_504(front_door: Front) -> None:
    with pytest.raises(openai.APIStatusError) as expired:
        await front_door.openai.chat.completions.create(**body(front_door), extra_body={"deadline": 0.3, **HANG})
    assert (expired.value.status_code, expired.value.code) == (504, "deadline_exceeded")


async def test_overload_is_a_429_with_retry_after(connection: Connection, pipeline: str) -> None:
    spec = omni_sim(pipeline)
    full = type(spec)(name=spec.name, stages=spec.stages, deadline=30.0, max_open_requests=1)
    async with front(connection, full, workers=False) as front_door:
        first = asyncio.create_task(
            front_door.http.post("/v1/chat/completions", json=body(front_door), headers={"Idempotency-Key": "1"})
        )
        await eventually(lambda: state_of(front_door, rid_of(front_door, "1")), what="accepted")

        async def refused() -> httpx.Response | None:
            answer = await front_door.http.post("/v1/chat/completions", json=body(front_door), timeout=1.0)
            return answer if answer.status_code == 429 else None

        answer = await eventually(refused, what="429")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    assert answer is not None
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "overloaded"


async def _cancelled_count(front_door: Front) -> float:
    metrics = (await front_door.http.get("/metrics")).text
    line = next(
        (line for line in metrics.splitlines() if 'chat/completions",status="499"' in line and "_total" in line), "x 0"
    )
    return float(line.rpartition(" ")[2])


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("read", ["http.response.start", "http.response.body"])
async def test_nothing_is_left_of_a_stream_when_its_caller_leaves_before_the_first_event(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch, read: str, *, keyed: bool
) -> None:
    """The caller leaves while the status, or a ping before any text, is on its way to it."""
    monkeypatch.setattr(channel, "READ_EVERY", 0.05)
    options = Options(first_event_wait=0.05, ping_interval=0.05)
    async with front(connection, omni_sim(pipeline), options, workers=False) as front_door:
        caller = _Leaving(json.dumps(body(front_door, stream=True)).encode(), read)
        caller.scope["headers"] += [(b"idempotency-key", b"again")] if keyed else []
        async with asyncio.timeout(20):
            await front_door.server._app(caller.scope, caller.receive, caller.send)
        (rid,) = [value.decode() for name, value in caller.headers if name.lower() == b"omnibus-request-id"]
        assert rid not in (await front_door.producer.channel(pipeline))._mailboxes
        assert (await state_of(front_door, rid) == "cancelled") is not keyed


class _Leaving:
    """A caller that goes away while it is sent a message of this type."""

    def __init__(self, content: bytes, at: str) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self._messages = iter([{"type": "http.request", "body": content, "more_body": False}])
        self._at, self._gone = at, asyncio.Event()
        self.scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions", "query_string": b"", "root_path": "",
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
        }  # fmt: skip

    async def receive(self) -> dict[str, Any]:
        if (message := next(self._messages, None)) is not None:
            return message
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.headers += message.get("headers", [])
        if message["type"] == self._at:
            self._gone.set()
            await asyncio.Event().wait()
