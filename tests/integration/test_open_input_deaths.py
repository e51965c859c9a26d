"""Sessions go on when what serves them dies: workers, senders, the server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.child_process import ChildProcess, start_child
from omnibus.client.producer import Producer
from omnibus.orchestrator.service import OrchestratorService
from omnibus.pipeline.spec import EdgeSpec, PipelineSpec, StageSpec
from omnibus.requests.state import RequestState
from omnibus.wire import stores, subjects
from omnibus.wire.request import Request
from tests.support import listening_stages
from tests.support.sessions import END, LONG, Heard, pipeline_of, said, session
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    listening_stages.reset()
    yield
    listening_stages.reset()


async def test_input_is_read_again_and_no_text_comes_twice_when_an_attempt_fails(
    connection: Connection, pipeline: str
) -> None:
    spec = pipeline_of(pipeline)
    async with session(connection, spec) as (producer, submission):
        heard = Heard(submission)
        await heard.until("HELLO ")
        for text in ("a b", "fail once", "c"):
            await producer.send_segment(spec, submission.rid, said(text))
        await heard.until("HELLO ", "A B ", "FAIL ONCE ", "C ")
        await producer.send_segment(spec, submission.rid, END)
        await heard.task
        assert listening_stages.runs["hello"] == 2
        assert (
            listening_stages.heard["hello"][:3] == listening_stages.heard["hello"][3:6] == ["hello", "a b", "fail once"]
        )


async def test_next_run_reads_the_input_from_its_beginning(connection: Connection, pipeline: str) -> None:
    stages = (
        StageSpec(
            stage_id=1, name="count", engine="python", model="tests.support.listening_stages:count_letters",
            input_sources=(0,), engine_args={"outputs": {"text": "text"}}, final_output=True, final_output_type="text",
        ),
    )  # fmt: skip
    spec = pipeline_of(pipeline, stages=stages, edges=(EdgeSpec(source=0, target=1, async_chunk=True),))
    async with session(connection, spec) as (producer, submission):
        await eventually(lambda: listening_stages.heard["hello"] == ["hello"], LONG)
        heard = Heard(submission)
        await eventually(lambda: heard.segments == ["5 "], LONG, what="the second stage speaks while the first listens")
        purged = {"filter": subjects.flows_filter(spec.name, submission.rid, submission.ticket.nonce, 1)}
        await connection.api(f"STREAM.PURGE.{stores.chunks_stream(spec.name)}", purged)
        await producer.send_segment(spec, submission.rid, said("you", end=True))
        result = await producer.wait(spec.name, submission.rid)
        assert (result.state, result.run, result.outputs[0].text) == (RequestState.DONE, 2, "5 3 ")


async def test_session_goes_on_when_the_server_and_the_senders_connection_die(
    own_server: EmbeddedServer, pipeline: str
) -> None:
    spec = pipeline_of(pipeline)
    async with (
        connect(own_server.url, name="serving") as connection,
        session(connection, spec) as (_, submission),
    ):
        heard = Heard(submission)
        await heard.until("HELLO ")
        async with connect(own_server.url, name="sender") as first, Producer(first) as sender:
            await sender.send_segment(spec, submission.rid, said("a"), number=1)
        await heard.until("HELLO ", "A ")
        await own_server.kill()
        await own_server.start()
        async with connect(own_server.url, name="another") as second, Producer(second) as sender:
            assert await sender.send_segment(spec, submission.rid, said("a"), number=1) == 1
            await sender.send_segment(spec, submission.rid, said("b", end=True), number=2)
        await heard.task
        assert heard.segments == ["HELLO ", "A ", "B ", ""]


async def test_session_goes_on_when_its_worker_and_its_sender_are_killed(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline, deadline=60.0)
    words, described = [f"word{number}" for number in range(6)], msgspec.json.encode(spec).decode()
    await ensure_layout(connection, layout_of(spec))
    async with Producer(connection) as producer, orchestrated(connection, spec):
        async with process("replica_process", connection.url, "w1", described):
            submission = await producer.submit(spec, Request(prompt="hello", resumable=True))
            heard = Heard(submission)
            async with process("session_sender", connection.url, described, submission.rid, *words[:3]):
                await heard.until("HELLO ", "WORD0 ", "WORD1 ", "WORD2 ")
        async with process("session_sender", connection.url, described, submission.rid, *words) as sender:
            assert sender.stdout is not None
            numbers = [int(await asyncio.wait_for(sender.stdout.readline(), LONG)) for _ in words]
            assert numbers == [1, 2, 3, 4, 5, 6], "while nobody listens"
        async with process("replica_process", connection.url, "w2", described):
            await heard.until("HELLO ", *(f"{word.upper()} " for word in words))
            await producer.send_segment(spec, submission.rid, END, number=7)
            await heard.task
    result = await producer.wait(spec.name, submission.rid)
    assert result.outputs[0].text == " ".join(["HELLO", *(word.upper() for word in words), ""])


@asynccontextmanager
async def process(module: str, *arguments: str) -> AsyncIterator[ChildProcess]:
    """A process of ours, killed with -9 at the end."""
    running = await start_child(sys.executable, "-m", f"tests.support.{module}", *arguments, stdout=subprocess.PIPE)
    try:
        yield running
    finally:
        running.kill()
        await running.wait()
        running.close()


@asynccontextmanager
async def orchestrated(connection: Connection, spec: PipelineSpec) -> AsyncIterator[None]:
    service = asyncio.create_task(OrchestratorService(connection, spec).run(), name="orchestrator")
    try:
        yield
    finally:
        service.cancel()
        await asyncio.gather(service, return_exceptions=True)
