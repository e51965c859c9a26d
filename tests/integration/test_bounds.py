"""Bounds on a real server: bytes that streams keep, and records that nothing ends."""

from __future__ import annotations

import json
import time

import msgspec
import pytest

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.client.producer import Producer
from omnibus.errors import BrokerRefused, Overloaded, UnknownRequest
from omnibus.ledger.records import Ledger
from omnibus.requests import record as records
from omnibus.requests.record import OPEN_TTL
from omnibus.requests.state import RequestState
from omnibus.wire import codec, stores, subjects
from omnibus.wire.envelope import DeadlinePassed
from omnibus.wire.request import Request
from tests.support.flow import line, serving
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
MIB = 1 << 20


async def test_request_is_refused_when_the_payload_store_is_full(connection: Connection, pipeline: str) -> None:
    """Nothing is accepted, and there is room again when what was stored has gone."""
    spec = line(pipeline, max_stored_bytes=2 * MIB, max_prompt_bytes=4 * MIB)
    large = Request(prompt="x" * (3 * MIB // 2))
    async with serving(connection, spec, replicas=0) as producer:
        first = await producer.submit(spec, large)
        with pytest.raises(Overloaded, match="max_stored_bytes"):
            await producer.submit(spec, large, rid="second")
        with pytest.raises(UnknownRequest):
            await producer.result(pipeline, "second")
        await producer.submit(spec, Request(prompt="small ones ride in their messages"))
        await producer.cancel(pipeline, first.rid)

        async def has_room() -> bool:
            try:
                await producer.submit(spec, large)
            except Overloaded:
                return False
            return True

        await eventually(has_room, 10)


async def test_raw_requests_are_refused_when_their_stream_has_no_room(connection: Connection, pipeline: str) -> None:
    spec = line(pipeline, max_stored_bytes=MIB)
    await ensure_layout(connection, layout_of(spec))
    body = json.dumps({"prompt": "x" * (MIB // 4)}).encode()
    for number in range(3):
        await connection.js_publish(subjects.request(pipeline, f"r{number}"), body)
    with pytest.raises(BrokerRefused, match="maximum bytes exceeded"):
        await connection.js_publish(subjects.request(pipeline, "r3"), body)


async def test_request_ends_as_expired_when_its_record_is_gone_before_anybody_ended_it(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody served the pipeline for OPEN_TTL; its deadline still waits in the queue."""
    spec = line(pipeline)
    await ensure_layout(connection, layout_of(spec))
    monkeypatch.setattr(records, "OPEN_TTL", 1.0)
    async with Producer(connection) as producer:
        await producer.submit(spec, Request(prompt="x", deadline=0.1), rid="long-ago")
    ledger = Ledger(connection, pipeline)

    async def is_gone() -> bool:
        return await ledger.read("long-ago") is None

    await eventually(is_gone, 10, what="the record expires")
    await connection.api(f"STREAM.PURGE.{stores.work_stream(pipeline)}")
    event = DeadlinePassed(rid="long-ago", deadline=time.time() - OPEN_TTL - 60.0)
    await connection.js_publish(subjects.deadline_event(pipeline, "long-ago"), codec.encode(event))
    async with serving(connection, spec, replicas=0) as producer:

        async def has_expired() -> bool:
            entry = await ledger.read("long-ago")
            return entry is not None and entry.record.state is RequestState.EXPIRED

        await eventually(has_expired, 10)
        assert (await producer.result(pipeline, "long-ago")).failure.code == "deadline_exceeded"


async def test_open_record_has_a_lifetime_in_the_broker(connection: Connection, pipeline: str) -> None:
    spec = line(pipeline)
    await ensure_layout(connection, layout_of(spec))
    async with Producer(connection) as producer:
        await producer.submit(spec, Request(prompt="x", deadline=20.0), rid="a")
    stream = f"KV_{Bucket(connection, stores.requests_bucket(pipeline)).name}"
    key = f"$KV.{stores.requests_bucket(pipeline)}.a"
    found = await connection.retried_request(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode({"last_by_subj": key}))
    seconds = int((found.headers or {})["Nats-TTL"])
    assert OPEN_TTL < seconds <= OPEN_TTL + 21
