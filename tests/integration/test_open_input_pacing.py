"""Back-pressure of open inputs: how far who sends their segments may be ahead of the stages that read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.client.async_omni import AsyncOmni
from omnibus.client.producer import Producer, Submission
from omnibus.errors import InputClosed, Overloaded
from omnibus.flows import pacing, reader, segments
from omnibus.flows.flow_name import FlowName
from omnibus.flows.reader import FlowReader
from omnibus.flows.stored_flow import last_message
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.deployed_pipelines import deploy_pipeline
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from omnibus.requests.state import RequestState
from omnibus.wire import codec, stores
from omnibus.wire.request import Request
from tests.support import listening_stages
from tests.support.flow import serving
from tests.support.sessions import END, LONG, pipeline_of, said, session
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
WINDOW, PART = 64 << 10, 8 << 10
LEASE = 0.5


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pacing, "WINDOW", WINDOW)
    monkeypatch.setattr(pacing, "LOOK_EVERY", 0.1)
    monkeypatch.setattr(reader, "REPORT_EVERY", PART)
    monkeypatch.setattr(segments, "READ_TIMEOUT", 1.0)
    listening_stages.reset()
    yield
    listening_stages.reset()


async def _sent(producer: Producer, spec: PipelineSpec, rid: str, count: int) -> int:
    """How many of so many segments were taken before one was refused."""
    for number in range(count):
        try:
            await producer.send_segment(spec, rid, said("x" * PART))
        except Overloaded:
            return number
    return count


async def _stored_bytes(connection: Connection, submission: Submission) -> int:
    _, last = await last_message(connection, FlowName.of_input(submission.ticket))
    return last.next_offset if last is not None else 0


async def test_sender_is_held_up_within_the_window_and_goes_on_when_the_stage_does(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = pipeline_of(pipeline, "echo", deadline=120.0)
    async with session(connection, spec, "wait") as (producer, submission):
        await eventually(lambda: bool(listening_stages.heard["wait"]), LONG)
        taken = await _sent(producer, spec, submission.rid, 100)
        assert WINDOW // (2 * PART) <= taken < 100
        assert await _stored_bytes(connection, submission) <= WINDOW + 2 * PART
        assert await _sent(producer, spec, submission.rid, 1) == 0, "time alone changes nothing"
        monkeypatch.setattr(segments, "READ_TIMEOUT", LONG)
        waiting = asyncio.create_task(_sent(producer, spec, submission.rid, 30))
        listening_stages.gates["wait"].set()
        assert await waiting == 30
        await producer.send_segment(spec, submission.rid, END)
        assert len((await submission.result()).outputs[0].text.split()) == 1 + taken + 30


async def test_end_of_an_input_is_not_held_up(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline, "echo", deadline=120.0)
    async with session(connection, spec, "wait") as (producer, submission):
        taken = await _sent(producer, spec, submission.rid, 100)
        assert await producer.send_segment(spec, submission.rid, END) == taken + 1
        listening_stages.gates["wait"].set()
        assert (await submission.result()).state is RequestState.DONE


async def test_generator_of_an_input_waits_for_its_stage(connection: Connection, pipeline: str) -> None:
    asked = 0

    async def said_on() -> AsyncIterator[str]:
        nonlocal asked
        yield "wait"
        for _ in range(40):
            asked += 1
            yield "x" * PART

    spec = pipeline_of(pipeline, "echo", deadline=120.0)
    async with serving(connection, spec):
        await deploy_pipeline(connection, spec)
        async with await asyncio.to_thread(AsyncOmni, spec.name, nats=connection.url) as omni:
            pending = asyncio.create_task(_last(omni.generate(said_on())))
            await asyncio.wait({pending}, timeout=4 * segments.READ_TIMEOUT)
            assert WINDOW // (2 * PART) <= asked < 40, "a refusal is not the end of it"
            listening_stages.gates["wait"].set()
            assert len((await pending).split()) == 41


async def _last(outputs: AsyncIterator[object]) -> str:
    text = ""
    async for output in outputs:
        text = output.text or text  # type: ignore[attr-defined]
    return text


@asynccontextmanager
async def _unserved(connection: Connection, pipeline: str) -> AsyncIterator[tuple[Producer, PipelineSpec, Submission]]:
    """A request with an open input that no worker takes."""
    spec = pipeline_of(pipeline, heartbeat_timeout=LEASE, deadline=120.0)
    await ensure_layout(connection, layout_of(spec))
    async with Producer(connection) as producer:
        yield producer, spec, await producer.submit(spec, Request(prompt="hello", resumable=True))


def _reading(connection: Connection, submission: Submission, stage: int | None = 0) -> FlowReader:
    name, deadline = FlowName.of_input(submission.ticket), connection.clock.now() + LONG
    return FlowReader(connection, name, deadline=deadline, reader=stage, lease=LEASE, is_there=False)


async def _read(listening: FlowReader, count: int) -> None:
    """Have so many segments read, and done with."""
    while count > 0:
        count -= len((await listening.read()).chunks)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await listening.read()


async def test_sender_is_refused_while_nobody_reads_and_goes_on_with_the_next_one_that_does(
    connection: Connection, pipeline: str
) -> None:
    async with _unserved(connection, pipeline) as (producer, spec, submission):
        taken = await _sent(producer, spec, submission.rid, 100)
        assert taken < 100
        with pytest.raises(Overloaded, match="still unread"):
            await producer.send_segment(spec, submission.rid, said("x" * PART))
        async with _reading(connection, submission) as first:
            await _read(first, taken)
            more = await _sent(producer, spec, submission.rid, 100)
            assert 0 < more < 100
        # It has died, and told of what it had read; nobody reads on.
        assert await _sent(producer, spec, submission.rid, 1) == 0
        assert await _stored_bytes(connection, submission) <= 2 * (WINDOW + 2 * PART)
        async with _reading(connection, submission) as second:
            await _read(second, taken + more)
            assert await _sent(producer, spec, submission.rid, 3) == 3


async def test_sender_goes_on_without_looking_for_a_reader_that_has_read_everything(
    connection: Connection, pipeline: str
) -> None:
    async with _unserved(connection, pipeline) as (producer, spec, submission), AsyncExitStack() as stack:
        listening = await stack.enter_async_context(_reading(connection, submission))
        for _ in range(20):
            assert await _sent(producer, spec, submission.rid, 1) == 1
            await _read(listening, 1)
        await stack.aclose()  # its last report is as old as that of one that has waited for long
        assert 0 < await _sent(producer, spec, submission.rid, 100) < 100


async def test_sender_is_not_held_up_by_a_worker_that_tells_nothing(connection: Connection, pipeline: str) -> None:
    """One of an earlier version, or with the credentials of one, has the request in hand and publishes no position."""
    async with _unserved(connection, pipeline) as (producer, spec, submission), _reading(connection, submission, None):
        held = await _sent(producer, spec, submission.rid, 100)
        assert held < 100
        old = ReplicaRecord(
            stage_id=0, replica="r0", instance="i", status=ReplicaStatus.UP, claims=((submission.rid, "$JS.ACK"),)
        )
        await Bucket(connection, stores.replicas_bucket(spec.name)).put("0.r0", codec.encode(old))
        assert await _sent(producer, spec, submission.rid, 12) == 12  # within the second that the record lives


async def test_held_up_sender_is_told_that_the_request_has_ended(connection: Connection, pipeline: str) -> None:
    async with _unserved(connection, pipeline) as (producer, spec, submission):
        await _sent(producer, spec, submission.rid, 100)
        await producer.cancel(spec.name, submission.rid)
        with pytest.raises(InputClosed, match="cancelled"):
            await producer.send_segment(spec, submission.rid, said("x" * PART))
