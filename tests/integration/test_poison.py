"""Poison: a request that breaks whatever touches it ends as failed after its attempts, and nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import msgspec
import pytest

from omnibus.broker import delivery_loop
from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.client.producer import Producer
from omnibus.errors import Unreadable
from omnibus.ledger import performer
from omnibus.ledger.dead_letters import DeadLetters
from omnibus.ledger.records import Ledger
from omnibus.ledger.work_queue import WorkQueue
from omnibus.orchestrator import forwarding
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.death.claim_book import ClaimBook
from omnibus.registry.death.failure_detector import FailureDetector
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from omnibus.requests.record import Record
from omnibus.requests.state import RequestState
from omnibus.wire import codec, stores, subjects
from omnibus.wire.control import Claim
from omnibus.wire.envelope import StageResult, Ticket
from omnibus.wire.request import Request
from tests.support.flow import serving
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
DEEP = 200_000
"""Levels of a nest that would overflow whoever follows it down."""


def poisoned(name: str) -> PipelineSpec:
    stages = (
        StageSpec(
            stage_id=0, name="first", engine="python", model="tests.support.poison_stage:first", slots=4,
            input_processor="tests.support.poison_stage:process", engine_args={"outputs": {"value": "value"}},
        ),
        StageSpec(
            stage_id=1, name="second", engine="python", model="tests.support.poison_stage:second", slots=4,
            input_sources=(0,), final_output=True, final_output_type="image", engine_args={"outputs": {"image": "image"}},
        ),
    )  # fmt: skip
    return PipelineSpec(name=name, stages=stages, max_attempts=2, deadline=60.0, heartbeat_timeout=5.0)


@dataclass
class Others:
    """The requests of others, one after the other as long as the poison works."""

    producer: Producer
    spec: PipelineSpec
    states: list[RequestState] = field(default_factory=list)

    async def go_on(self) -> None:
        while True:
            submission = await self.producer.submit(self.spec, Request(prompt="fine"))
            self.states.append((await submission.result()).state)


@asynccontextmanager
async def others_flowing(connection: Connection, spec: PipelineSpec) -> AsyncIterator[Others]:
    """Everything served while others' requests flow; at the end all of these are done, and so are three more."""
    async with serving(connection, spec) as producer:
        others = Others(producer, spec)
        flow = asyncio.create_task(others.go_on())
        try:
            yield others
            poisoned_until = len(others.states)
            await eventually(lambda: len(others.states) > poisoned_until + 2 or flow.done(), 20, what="others go on")
        finally:
            flow.cancel()
            await asyncio.wait({flow})
        assert set(others.states) == {RequestState.DONE}


async def ended(connection: Connection, spec: PipelineSpec, rid: str) -> Record:
    async def failed() -> Record | None:
        entry = await Ledger(connection, spec.name).read(rid)
        return entry.record if entry is not None and entry.record.state.terminal else None

    return await eventually(failed, 20, what=f"the end of {rid}")


STAGE_POISON = {
    "raises": ("engine_error", 2),
    "raises much": ("engine_error", 2),
    "raises StopIteration": ("engine_error", 2),
    "exits": ("engine_error", 2),
    "processor raises": ("engine_error", 2),
    "processor exits": ("engine_error", 2),
    "sends an object": ("engine_error", 2),
    "sends a deep nest": ("engine_error", 2),
    "delivers nothing": ("engine_error", 2),
    "delivers too many": ("request_too_large", 0),
}
"""Prompt → how its request fails, and the attempts that it used up."""


async def test_others_go_on_when_requests_break_their_stages(connection: Connection, pipeline: str) -> None:
    spec = poisoned(pipeline)
    async with others_flowing(connection, spec) as others:
        for number, prompt in enumerate(STAGE_POISON):
            await others.producer.submit(spec, Request(prompt=prompt), rid=f"poison-{number}")
        for number, (prompt, (code, attempts)) in enumerate(STAGE_POISON.items()):
            record = await ended(connection, spec, f"poison-{number}")
            assert record.state is RequestState.FAILED, prompt
            assert record.failure is not None
            assert (record.failure.code, record.failure.attempts) == (code, attempts), prompt
            assert (record.dead, len(record.attempts)) == (attempts > 0, attempts), prompt


def _result(record: Record, **fields: object) -> bytes:
    return codec.encode(StageResult(ticket=record.ticket, replica="r0", **{"stage_id": 0, **fields}))


def _bomb() -> bytes:
    """A deep nest in a field that nobody knows."""
    return b"\x82\xa4type\xa6result\xa1x" + b"\x91" * DEEP + b"\xc0"


def _of_another(record: Record) -> bytes:
    ticket: Ticket = msgspec.structs.replace(record.ticket, rid="another")
    return codec.encode(StageResult(ticket=ticket, stage_id=0, replica="r0"))


EVENT_POISON: dict[str, tuple[str, Callable[[Record], bytes]]] = {
    "nothing": ("0.result", lambda _: b""),
    "garbage": ("0.result", lambda _: b"\xc1garbage"),
    "a deep nest": ("0.result", lambda _: _bomb()),
    "another's": ("0.result", _of_another),
    "a stage that is not there": ("99.result", lambda record: _result(record, stage_id=99)),
    "a kind that is not there": ("0.weird", _result),
    "a deadline without a body": ("any.deadline", lambda _: b""),
}
"""Kind of message → the middle of its subject, and its body."""


async def test_others_go_on_when_events_cannot_be_handled(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each ends the request that its subject names, after a bounded number of attempts."""
    monkeypatch.setattr(delivery_loop, "_RETRY", 0.02)
    spec = poisoned(pipeline)
    async with others_flowing(connection, spec) as others:
        for number, (kind, body) in enumerate(EVENT_POISON.values()):
            # Nobody serves it: a lane that the request cannot be on.
            record = await _open_record(others.producer, spec, f"poison-{number}")
            await connection.js_publish(f"omni.{pipeline}.event.{kind}.{record.rid}", body(record))
        for number, what in enumerate(EVENT_POISON):
            assert (await ended(connection, spec, f"poison-{number}")).state is RequestState.FAILED, what
            await _nothing_queued(connection, pipeline, f"poison-{number}")


async def test_others_go_on_when_handling_an_event_raises(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours: after its attempts the request is a dead letter, to be run again when the bug is mended."""
    monkeypatch.setattr(delivery_loop, "_RETRY", 0.02)
    advance, handled = forwarding.advance, []

    def advance_with_a_bug(event: object, record: Record | None) -> object:
        if record is not None and record.rid == "poison":
            handled.append(event)
            raise ZeroDivisionError("a bug of an orchestrator")
        return advance(event, record)  # type: ignore[arg-type]

    for module in (performer, forwarding):  # an end that reads nothing, and every other one
        monkeypatch.setattr(module, "advance", advance_with_a_bug)
    spec = poisoned(pipeline)
    async with others_flowing(connection, spec) as others:
        await others.producer.submit(spec, Request(prompt="fine"), rid="poison")
        record = await ended(connection, spec, "poison")
    assert (record.state, record.dead) == (RequestState.FAILED, True)
    assert len(handled) == delivery_loop.ATTEMPTS


@pytest.mark.parametrize("damaged", [b"\xc1", b"\x81\xa1v\x07", None])
async def test_record_is_buried_when_nobody_can_read_it(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch, damaged: bytes | None
) -> None:
    """After a few deliveries it says so itself, and what it was is a dead letter. None: the record of another request."""
    monkeypatch.setattr(delivery_loop, "_RETRY", 0.02)
    spec = poisoned(pipeline)
    async with others_flowing(connection, spec) as others:
        record = await _open_record(others.producer, spec, "poison")
        another = await _open_record(others.producer, spec, "another")
        stored = damaged if damaged is not None else codec.encode(another)
        await Bucket(connection, stores.requests_bucket(pipeline)).put("poison", stored)
        await connection.js_publish(subjects.event(pipeline, 1, "final", "poison"), _result(record, stage_id=1))
        buried = await eventually(lambda: _readable(connection, pipeline, "poison"), 20, what="its end")
        assert (buried.rid, buried.state, buried.dead) == ("poison", RequestState.FAILED, True)
        assert buried.failure is not None
        assert buried.failure.code == Unreadable.code
        letters = DeadLetters(connection, pipeline)
        dead_letter = await eventually(lambda: letters.read("poison"), what="its dead letter")
        assert await letters.input(dead_letter) == stored
        assert (await others.producer.result(pipeline, "another")).state is RequestState.OPEN
    await _no_events(connection, pipeline)


async def test_dead_letters_are_listed_when_one_of_them_cannot_be_read(connection: Connection, pipeline: str) -> None:
    await ensure_layout(connection, layout_of(poisoned(pipeline)))
    await Bucket(connection, stores.requests_bucket(pipeline)).put(stores.dead_letter_key("a"), b"\xc1")
    assert await DeadLetters(connection, pipeline).all() == []


async def test_others_go_on_when_tasks_cannot_be_read(connection: Connection, pipeline: str) -> None:
    spec = poisoned(pipeline)
    async with others_flowing(connection, spec) as others:
        bodies = [b"", b"\xc1garbage", _bomb().replace(b"\xa6result", b"\xa4task")]
        for number, body in enumerate(bodies):
            await _open_record(others.producer, spec, f"poison-{number}")
            await connection.js_publish(subjects.task(pipeline, 1, "interactive", f"poison-{number}"), body)
        for number in range(len(bodies)):
            assert (await ended(connection, spec, f"poison-{number}")).state is RequestState.FAILED


async def test_dead_replicas_are_marked_down_when_a_claim_is_nonsense(connection: Connection, pipeline: str) -> None:
    """Anybody who may publish claims can say anything; the judge acts on what answers a delivery."""
    await ensure_layout(connection, layout_of(poisoned(pipeline)))
    record = ReplicaRecord(stage_id=0, replica="r0", instance="i", host="h", pid=1, slots=1, status=ReplicaStatus.UP)
    bucket = Bucket(connection, stores.replicas_bucket(pipeline))
    await bucket.put(stores.replica_key(0, "r0"), codec.encode(record))
    async with ClaimBook(connection, pipeline) as claims:
        said = (("a", "garbage"), ("b", ""), ("c", "$JS.ACK.x.y.z"), ("d", f"$JS.ACK.s.c.1.{10**9}.3.4.5"))
        claim = Claim(stage_id=0, replica="r0", instance="i", number=1, held=said)
        await connection.publish(subjects.claim(pipeline, 0, "r0"), codec.encode(claim))
        await eventually(lambda: claims.held(record), what="the claim")
        assert [rid for rid, _ in claims.held(record)] == ["d"]
        assert await FailureDetector(connection, pipeline, claims).mark_down(record)


RAW_POISON = {
    "nothing": b"",
    "garbage": b"\xc1\xff\x00",
    "half a document": b'{"prompt": "x"',
    "not an object": b"[1, 2, 3]",
    "a deep nest of JSON": b'{"prompt": "x", "sampling_params": {"first": {"a": ' + b"[" * DEEP,
    "a deep nest of MessagePack": b"\x82\xa6prompt\xa1x\xa1y" + b"\x91" * DEEP + b"\xc0",
    "a length that is a lie": b"\xdf\xff\xff\xff\xff",
    "half a surrogate": b'{"prompt": "\\ud800"}',
    "an endless deadline": b'{"prompt": "x", "deadline": 1e999}',
    "a deadline before now": b'{"prompt": "x", "deadline": -1}',
    "a priority of many digits": b'{"prompt": "x", "priority": 99999999999999999999999999}',
    "a lane of its own": b'{"prompt": "x", "lane": "mine"}',
    "a tenant larger than a record": b'{"prompt": "x", "tenant": "' + b"t" * 7_000_000 + b'"}',
    "a tenant larger than an envelope": b'{"prompt": "x", "tenant": "' + b"t" * 600_000 + b'"}',
    "very many modalities": b'{"prompt": "x", "modalities": [' + b",".join([b'"smell"'] * 400_000) + b"]}",
    "an endless number": b'{"prompt": "x", "sampling_params": {"first": {"n": ' + b"9" * 300_000 + b"}}}",
}


async def test_others_go_on_when_raw_requests_are_nonsense(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each was acknowledged by the broker: it ends, and its producer can read why."""
    monkeypatch.setattr(delivery_loop, "_RETRY", 0.02)
    spec = poisoned(pipeline)
    async with others_flowing(connection, spec):
        for number, body in enumerate(RAW_POISON.values()):
            await connection.js_publish(subjects.request(pipeline, f"poison-{number}"), body)
        for impossible in ("x" * 65, "é", "a b"):
            await connection.js_publish(f"omni.{pipeline}.request.{impossible.replace(' ', '%')}", b'{"prompt": "x"}')
        for number, what in enumerate(RAW_POISON):
            record = await ended(connection, spec, f"poison-{number}")
            assert record.state is RequestState.FAILED, what
            assert record.failure is not None
            assert 400 <= record.failure.http_status < 500, (what, record.failure)
        await eventually(lambda: _no_raw_requests(connection, pipeline), 10, what="every raw request is acknowledged")


async def _open_record(producer: Producer, spec: PipelineSpec, rid: str) -> Record:
    """The record of a request that a stage does not finish."""
    await producer.submit(spec, Request(prompt="hangs", deadline=30.0), rid=rid)
    entry = await Ledger(producer.connection, spec.name).read(rid)
    assert entry is not None
    return entry.record


async def _nothing_queued(connection: Connection, pipeline: str, rid: str) -> None:
    async def empty() -> bool:
        return not await WorkQueue(connection, pipeline).anything_queued(rid)

    await eventually(empty, 10, what=f"nothing is queued of {rid}")


async def _readable(connection: Connection, pipeline: str, rid: str) -> Record | None:
    with suppress(Unreadable):
        entry = await Ledger(connection, pipeline).read(rid)
        return entry.record if entry is not None else None
    return None


async def _no_events(connection: Connection, pipeline: str) -> None:
    async def handled() -> bool:
        return (await WorkQueue(connection, pipeline).depths())["events"].total == 0

    await eventually(handled, 10, what="every event is handled")


async def _no_raw_requests(connection: Connection, pipeline: str) -> bool:
    info = await connection.api(f"STREAM.INFO.{stores.requests_stream(pipeline)}")
    return bool(info["state"]["messages"] == 0)
