"""Holes around the way in: whatever dies or comes late there, an accepted request ends, and its id means one request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.broker.delivery import Delivery
from omnibus.broker.delivery_loop import _LONGEST_RETRY, ATTEMPTS
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.broker.puller import Puller
from omnibus.client.producer import Producer
from omnibus.errors import BrokerUnavailable, EngineError, Overloaded, RequestConflict, RevisionConflict
from omnibus.ledger.acceptance import _resolve_conflict, admit
from omnibus.ledger.performer import Performer
from omnibus.ledger.work_queue import WorkQueue
from omnibus.orchestrator import intake as intake_module
from omnibus.orchestrator.intake import Intake
from omnibus.payloads.store import PayloadStore
from omnibus.pipeline.spec import PayloadRule, PipelineSpec
from omnibus.requests.admission import new_record
from omnibus.requests.advance import entry_tasks
from omnibus.requests.effects import CreateRecord, ScheduleDeadline
from omnibus.requests.record import Record
from omnibus.requests.state import RequestState
from omnibus.wire import stores, subjects
from omnibus.wire.envelope import Ticket
from omnibus.wire.failure import Failure
from omnibus.wire.payload import Payload
from omnibus.wire.request import REQUEST_MEDIA_TYPE, Request, encode_request
from tests.support.flow import line, serving, sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
HELLO = Request(prompt="a red circle")


def record_of(spec: PipelineSpec, rid: str, request: Request = HELLO, *, nonce: str = "n", late: float = 0.0) -> Record:
    """A record as `admit` makes one, `late` seconds ago."""
    payload = Payload.inline(encode_request(request), REQUEST_MEDIA_TYPE)
    now = time.time() - late
    return new_record(spec, request, rid=rid, payload=payload, nonce=nonce, now=now, front=None)


async def queue_is_empty(connection: Connection, pipeline: str, timeout: float = 5.0) -> None:
    async def empty() -> bool:
        return (await WorkQueue(connection, pipeline).traffic()).messages == 0

    await eventually(empty, timeout, what="nothing is queued")


@pytest_asyncio.fixture
async def performer(connection: Connection, pipeline: str) -> AsyncIterator[Performer]:
    await ensure_layout(connection, layout_of(line(pipeline)))
    yield Performer(connection, pipeline)


async def test_request_expires_when_its_deadline_fired_before_its_record_was_there(
    connection: Connection, pipeline: str
) -> None:
    """An outage between the timer and the record: dropped as unknown, the deadline would never come again."""
    spec, performer = line(pipeline), Performer(connection, pipeline)
    async with serving(connection, spec) as producer:
        record = record_of(spec, "late", late=spec.deadline)
        await performer.perform([ScheduleDeadline(record.ticket)])
        events = f"CONSUMER.INFO.{stores.work_stream(pipeline)}.{stores.EVENTS_CONSUMER}"

        async def heard() -> bool:
            info = await connection.api(events)
            return bool(info["delivered"]["consumer_seq"]) and not info["num_pending"]

        await eventually(heard, what="the orchestrator has had the deadline")
        await performer.perform([CreateRecord(record), *entry_tasks(record.ticket, record.ticket.created)])
        result = await producer.wait(pipeline, "late")
        assert result.state is RequestState.EXPIRED
        await queue_is_empty(connection, pipeline)


async def test_admission_goes_on_when_the_acknowledgement_of_its_record_was_lost(
    performer: Performer, connection: Connection, pipeline: str
) -> None:
    """The record is there, with this call's nonce, and the caller heard nothing; it may be made anew a moment later."""
    first, again = record_of(line(pipeline), "mine", late=1.0), record_of(line(pipeline), "mine")
    await performer.ledger.create(first)
    admitted = await admit(performer, again)
    assert (admitted.attached, admitted.record) == (False, first)
    assert (await performer.queue.traffic()).messages == 2, "its timer and its task"


@pytest.mark.usefixtures("quick_reads")
async def test_nothing_stays_queued_when_a_raw_request_comes_again_after_its_end(
    connection: Connection, pipeline: str
) -> None:
    """The orchestrator that admitted it died before its ack; the request ran to its end meanwhile."""
    spec = line(pipeline)
    await ensure_layout(connection, layout_of(spec))
    await connection.js_publish(subjects.request(pipeline, "raw"), b'{"prompt": "hi"}')
    intake = Intake(connection, Performer(connection, pipeline), spec)
    delivery = await _raw_delivery(connection, pipeline)
    assert await intake.handle(delivery)
    async with serving(connection, spec) as producer:
        first = await producer.wait(pipeline, "raw")
        await queue_is_empty(connection, pipeline)
        assert await intake.handle(delivery)
        await delivery.ack()
        await queue_is_empty(connection, pipeline)
        assert await producer.result(pipeline, "raw") == first


@pytest.mark.parametrize("deadline", [0.6, 18.0])
async def test_deadline_stays_when_another_request_wants_the_id(
    connection: Connection, pipeline: str, deadline: float
) -> None:
    spec = line(pipeline)
    async with serving(connection, spec, replicas=0) as producer:
        began = time.monotonic()
        await producer.submit(spec, Request(prompt="hi", deadline=1.5), rid="mine")
        with pytest.raises(RequestConflict):
            await producer.submit(spec, Request(prompt="else", deadline=deadline), rid="mine")
        assert (await producer.wait(pipeline, "mine")).state is RequestState.EXPIRED
        assert 1.4 < time.monotonic() - began < 8.0
        with pytest.raises(RequestConflict):
            await producer.submit(spec, Request(prompt="else", deadline=deadline), rid="mine")
        await queue_is_empty(connection, pipeline)


async def test_nothing_stays_queued_when_a_request_ends_while_somebody_attaches(
    performer: Performer, connection: Connection, pipeline: str
) -> None:
    record = record_of(line(pipeline), "mine")
    await admit(performer, record)
    seen_open = await performer.ledger.read("mine")
    assert seen_open is not None
    async with Producer(connection) as producer:
        assert (await producer.cancel(pipeline, "mine")).state is RequestState.CANCELLED
        await _resolve_conflict(performer, seen_open, record_of(line(pipeline), "mine", nonce="other"))
        assert (await producer.result(pipeline, "mine")).run == 1
    await queue_is_empty(connection, pipeline)


@pytest.mark.usefixtures("quick_reads")
async def test_open_record_with_nothing_queued_runs_again_when_somebody_attaches(
    connection: Connection, pipeline: str
) -> None:
    """Its admitter died before the task was stored, and the task's id is remembered."""
    spec, performer = line(pipeline), Performer(connection, pipeline)
    await ensure_layout(connection, layout_of(spec))
    record = record_of(spec, "mine")
    await admit(performer, record)
    await performer.queue.purge("mine")
    async with serving(connection, spec) as producer:
        submission = await producer.submit(spec, HELLO, rid="mine")
        result = await submission.result()
    assert (submission.attached, result.state, result.run) == (True, RequestState.DONE, 2)


@pytest.mark.parametrize(("nonce", "request_"), [("n", HELLO), ("other", HELLO), ("other", Request(prompt="another"))])
async def test_nothing_stays_queued_when_a_request_ends_while_it_is_admitted_again(
    performer: Performer, connection: Connection, pipeline: str, nonce: str, request_: Request
) -> None:
    """The same call once more, a client that came back, or another request: each puts the timer back of what it read as open."""
    await admit(performer, record_of(line(pipeline), "mine"))
    seen_open = await performer.ledger.read("mine")
    assert seen_open is not None
    async with Producer(connection) as producer:
        await producer.cancel(pipeline, "mine")
    with suppress(RequestConflict):
        await _resolve_conflict(performer, seen_open, record_of(line(pipeline), "mine", request_, nonce=nonce))
    assert (await performer.queue.traffic()).messages == 0


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (
            b'{"prompt": "x", "sampling_params": {"s0": {"seed": 123456789012345678901234567890}}}',
            {},
            "invalid_request",
        ),
        (
            b'{"prompt": "x", "sampling_params": {"s0": {"a": ' + b"[" * 2000 + b"]" * 2000 + b"}}}",
            {},
            "invalid_request",
        ),
        (b'{"prompt": "x", "trace": {"a": "' + b"x" * 600_000 + b'"}}', {}, "request_too_large"),
        (b'{"prompt": "x"}', {"Omni-Reply": "no token"}, "invalid_name"),
    ],
    ids=["huge integer", "deep nesting", "huge trace", "bad reply token"],
)
async def test_raw_request_ends_failed_when_it_cannot_be_admitted(
    connection: Connection, pipeline: str, body: bytes, headers: dict[str, str], code: str
) -> None:
    """It was acknowledged by the broker: put back or dropped, its producer would wait for ever."""
    spec, performer = line(pipeline), Performer(connection, pipeline)
    await ensure_layout(connection, layout_of(spec))
    await performer.queue.schedule_deadline("bad", "n", time.time() + 60.0)  # an earlier attempt came that far
    async with serving(connection, spec, replicas=0):
        await connection.js_publish(subjects.request(pipeline, "bad"), body, headers=headers)
        entry = await eventually(lambda: performer.ledger.read("bad"), what="a record")
        await queue_is_empty(connection, pipeline)
    assert entry.record.state is RequestState.FAILED
    assert entry.record.failure is not None
    assert entry.record.failure.code == code


async def test_bound_of_a_tenant_is_free_again_when_the_end_arrived_before_the_admission_returned(
    connection: Connection, pipeline: str
) -> None:
    spec = line(pipeline, max_open_per_tenant=1)
    async with serving(connection, spec) as producer:
        for number in range(30):
            await eventually(lambda number=number: _accepted(producer, spec, f"r{number}"), what="room for one more")
            await producer.wait(pipeline, f"r{number}")
        channel = await producer.channel(pipeline)
        await eventually(lambda: not channel.open_requests.count("default"), 2, what="nothing counts as open")


async def test_record_is_found_where_it_was_written_when_another_copy_lags(
    performer: Performer, connection: Connection, pipeline: str
) -> None:
    """Absence is confirmed by the leader, which also tells a record from the marker of one."""
    assert await performer.ledger.read("mine") is None
    record = record_of(line(pipeline), "mine")
    await performer.perform([CreateRecord(record)])
    bucket = performer.ledger._bucket
    found, expected = await bucket.get_confirmed("mine"), await bucket.get("mine")
    assert found == expected is not None
    empty = f"empty-{pipeline}"
    await ensure_layout(connection, layout_of(line(empty)))
    bucket._get = f"$JS.API.DIRECT.GET.KV_{stores.requests_bucket(empty)}.{bucket._prefix}"  # as a lagging copy answers
    assert await bucket.get("mine") is None
    assert await bucket.get_confirmed("mine") == expected
    await bucket.delete("mine")
    assert await bucket.get_confirmed("mine") is None


async def test_request_of_a_large_image_and_large_outputs_is_forwarded(connection: Connection, pipeline: str) -> None:
    """Each fits into an envelope, together they do not: what is too much goes by reference."""
    tensors = {"outputs": {"tensor": "tensor", "text": "text"}, "size": 60_000}  # 240 kB each
    spec = PipelineSpec(
        name=pipeline,
        deadline=20.0,
        stages=(sim(0, **tensors), sim(1, 0, **tensors), sim(2, 0, **tensors), sim(3, 0, 1, 2, final="text")),
    )
    async with serving(connection, spec) as producer:
        result = await (await producer.submit(spec, Request(prompt="word " * 50_000))).result()
    assert result.state is RequestState.DONE, result.failure


async def test_input_is_kept_when_the_record_in_the_way_lapses_between_two_attempts(
    performer: Performer, connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found ended, with a dead letter that keeps changing: the next attempt finds nothing, and creates a record of its own."""
    failed = record_of(line(pipeline), "mine").ended(RequestState.FAILED, Failure.of(EngineError("once")))
    await performer.ledger.create(replace(failed, dead=True))

    async def keep(_record: Record) -> None:
        await performer.ledger._bucket.delete("mine")
        raise RevisionConflict("the dead letter keeps changing")

    monkeypatch.setattr(performer.dead_letters, "keep", keep)
    store = PayloadStore(connection, pipeline)
    body = encode_request(HELLO)
    payload = await store.put(body, REQUEST_MEDIA_TYPE, rid="mine", rule=PayloadRule.OBJECT)
    record = record_of(line(pipeline), "mine", nonce="other")
    admitted = await admit(performer, replace(record, ticket=replace(record.ticket, request=payload)))
    assert not admitted.attached
    assert await store.get(admitted.record.ticket.request) == body


async def test_raw_request_is_refused_when_another_had_its_id_and_its_sequence(
    connection: Connection, pipeline: str
) -> None:
    """The stream was deleted and made anew: it counts from 1 again."""
    spec = line(pipeline)
    intake = Intake(connection, Performer(connection, pipeline), spec)
    sequences = []
    for prompt in ("one", "another"):
        await ensure_layout(connection, layout_of(spec))
        await connection.js_publish(subjects.request(pipeline, "taken"), encode_request(Request(prompt=prompt)))
        delivery = await _raw_delivery(connection, pipeline)
        sequences.append(delivery.stream_seq)
        with suppress(RequestConflict) if prompt == "one" else pytest.raises(RequestConflict):
            assert await intake.handle(delivery)
        await connection.api(f"STREAM.DELETE.{stores.requests_stream(pipeline)}")
    assert sequences == [1, 1]


@pytest.mark.parametrize(("rid", "is_single"), [(None, False), ("mine", True), ("mine", False)])
async def test_request_that_failed_between_record_and_timer_stays_open_only_where_it_may_come_again(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch, rid: str | None, is_single: bool
) -> None:
    class LostTimer:
        def __await__(self) -> Any:
            raise BrokerUnavailable("lost")

        def drop(self) -> None:
            pass

    def losing(_performer: Performer, ticket: Ticket) -> LostTimer:
        rids.append(ticket.rid)
        return LostTimer()

    spec, rids = line(pipeline), list[str]()
    async with serving(connection, spec) as producer:
        with monkeypatch.context() as patched:
            patched.setattr(Performer, "_schedule", losing)
            with pytest.raises(BrokerUnavailable):
                await producer.submit(spec, HELLO, rid=rid, is_single=is_single)
        left = await producer.result(pipeline, rids[0])
        may_come_again = rid is not None and not is_single
        assert left.state is (RequestState.OPEN if may_come_again else RequestState.CANCELLED)
        if may_come_again:
            submission = await producer.submit(spec, HELLO, rid=rid)
            assert (await submission.result()).state is RequestState.DONE
        await queue_is_empty(connection, pipeline)


async def test_raw_request_expires_when_its_admitter_died_between_record_and_timer(
    connection: Connection, pipeline: str
) -> None:
    """Both are in flight at once. Its message comes again when its deadline has passed: an open record is in the way."""
    spec = line(pipeline, deadline=1.0)
    await ensure_layout(connection, layout_of(spec))
    await connection.js_publish(subjects.request(pipeline, "orphan"), encode_request(HELLO))
    performer, stored_at = Performer(connection, pipeline), time.time()
    await performer.ledger.create(record_of(spec, "orphan", nonce="dead"))
    await eventually(lambda: time.time() > stored_at + spec.deadline, what="its deadline has passed")
    async with serving(connection, spec, replicas=0) as producer, asyncio.timeout(10.0):
        result = await producer.wait(pipeline, "orphan")
    assert result.state is RequestState.EXPIRED


async def test_raw_request_is_admitted_when_an_error_follows_a_long_wait_for_room(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was put back more often than an error is forgiven; each of that was a delivery, none an error: that one comes soon."""
    spec, errors = line(pipeline, max_open_requests=1), [ZeroDivisionError("a bug of an orchestrator")]

    def new_record_with_a_bug(*args: Any, **kwargs: Any) -> Record:
        if errors:
            raise errors.pop()
        return new_record(*args, **kwargs)

    monkeypatch.setattr(intake_module, "_PUT_BACK", 0.02)
    monkeypatch.setattr(intake_module, "new_record", new_record_with_a_bug)
    requests = f"CONSUMER.INFO.{stores.requests_stream(pipeline)}.{stores.REQUESTS_CONSUMER}"

    async def put_back_often() -> bool:
        return bool((await connection.api(requests))["delivered"]["consumer_seq"] > 2 * ATTEMPTS)

    async with serving(connection, spec, replicas=0) as producer:
        first = await producer.submit(spec, HELLO)
        await connection.js_publish(subjects.request(pipeline, "waits"), encode_request(HELLO))
        await eventually(put_back_often, 20, what="the raw request is put back")
        await producer.cancel(pipeline, first.rid)
        ledger = Performer(connection, pipeline).ledger
        entry = await eventually(lambda: ledger.read("waits"), 0.8 * _LONGEST_RETRY, what="its record")
    assert not errors
    assert entry.record.state is RequestState.OPEN


async def _accepted(producer: Producer, spec: PipelineSpec, rid: str) -> bool:
    try:
        await producer.submit(spec, HELLO, rid=rid)
    except Overloaded:
        return False
    return True


async def _raw_delivery(connection: Connection, pipeline: str) -> Delivery:
    async with Puller(connection, stores.requests_stream(pipeline), [stores.REQUESTS_CONSUMER]) as puller:
        puller.add_credit()
        return await puller.take()
