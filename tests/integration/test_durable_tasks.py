"""Holes between the stages: zombies, lost payloads, forgotten ids, lost notices. None of them loses or doubles a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from msgspec.structs import replace

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.objects import ObjectStore
from omnibus.ledger.work_queue import WorkQueue
from omnibus.payloads.store import PayloadStore
from omnibus.pipeline.spec import EdgeSpec, PayloadRule, PipelineSpec
from omnibus.requests.advance import entry_tasks
from omnibus.requests.state import RequestState
from omnibus.wire import codec, stores, subjects
from omnibus.wire.control import Cancel
from omnibus.wire.envelope import FinalOutput, StageResult, Task
from omnibus.wire.payload import TEXT, Payload
from omnibus.wire.request import REQUEST_MEDIA_TYPE, ImagePart, Message, Request, TextPart, encode_request
from omnibus.workers.engines.sim import expected_text
from omnibus.workers.replica import Replica, ReplicaOptions
from tests.support.flow import line, serving, sim
from tests.support.pictures import bitmap
from tests.support.stage_bench import make_task, stage_bench
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
HELLO = Request(prompt="a red circle")


@asynccontextmanager
async def stage_up(connection: Connection, spec: PipelineSpec, stage_id: int) -> AsyncIterator[Replica]:
    """A replica of one stage."""
    replica = Replica(connection, spec, spec.stage(stage_id), ReplicaOptions(grace=0.1))
    running = asyncio.create_task(replica.run())
    try:
        await eventually(lambda: replica.record.status == "up", what="the replica is up")
        yield replica
    finally:
        replica.drain()
        async with asyncio.timeout(10):
            await running


async def queued_task(connection: Connection, pipeline: str, stage_id: int, rid: str) -> Task:
    """The task of a stage, once it is queued."""
    subject = subjects.task(pipeline, stage_id, "interactive", rid)
    bucket = f"STREAM.MSG.GET.{stores.work_stream(pipeline)}"
    await eventually(lambda: connection.find(bucket, {"last_by_subj": subject}), what=f"a task of stage {stage_id}")
    direct = await connection.retried_request(f"$JS.API.DIRECT.GET.{stores.work_stream(pipeline)}.{subject}")
    return codec.decode(direct.data, Task)


async def events_handled(connection: Connection, pipeline: str) -> None:
    async def handled() -> bool:
        return (await WorkQueue(connection, pipeline).depths())["events"].total == 0

    await eventually(handled, what="every event is handled")


async def test_result_of_a_zombie_counts_when_it_is_the_first(connection: Connection, pipeline: str) -> None:
    """Its lease is lost and another replica has the task in hand; its answer is as good."""
    spec = PipelineSpec(name=pipeline, stages=(sim(0, final="text", hang_on={"rid": "."}),), heartbeat_timeout=1.0)
    async with serving(connection, spec) as producer:
        submission = await producer.submit(spec, HELLO)
        task = await queued_task(connection, pipeline, 0, submission.rid)
        said = FinalOutput(stage_id=0, modality="text", items=(Payload.inline(b"from a zombie", TEXT),))
        result = StageResult(ticket=task.ticket, stage_id=0, replica="zombie", final=said)
        await connection.js_publish(subjects.event(pipeline, 0, "final", submission.rid), codec.encode(result))
        ended = await submission.result()
    assert (ended.state, ended.outputs[0].text) == (RequestState.DONE, "from a zombie")


async def test_request_runs_again_when_a_payload_is_lost(connection: Connection, pipeline: str) -> None:
    """All its stages, under the next run: the ids of the first one do not swallow them."""
    spec = line(pipeline)
    spec = replace(spec, edges=(EdgeSpec(source=0, target=1, payload=PayloadRule.OBJECT),))
    async with serving(connection, spec, replicas=0) as producer, stage_up(connection, spec, 0):
        submission = await producer.submit(spec, HELLO)
        task = await queued_task(connection, pipeline, 1, submission.rid)
        location = task.inputs[0]["text"].object_key
        assert location is not None
        await ObjectStore(connection, stores.payloads_bucket(pipeline)).delete(location)
        async with stage_up(connection, spec, 1):
            result = await submission.result()
    assert (result.state, result.run) == (RequestState.DONE, 2)
    assert result.outputs[0].text == expected_text("a red circle")


async def test_payload_is_kept_when_its_reader_has_acknowledged(connection: Connection, pipeline: str) -> None:
    """The message may come again, and then needs it."""
    spec = PipelineSpec(
        name=pipeline,
        stages=(sim(0), sim(1, 0), sim(2, 1, final="text")),
        edges=(EdgeSpec(source=0, target=1, payload=PayloadRule.OBJECT),),
    )
    async with serving(connection, spec, replicas=0) as producer, stage_up(connection, spec, 0):
        submission = await producer.submit(spec, HELLO)
        payload = (await queued_task(connection, pipeline, 1, submission.rid)).inputs[0]["text"]
        async with stage_up(connection, spec, 1):
            await queued_task(connection, pipeline, 2, submission.rid)

            async def acknowledged() -> bool:
                return (await WorkQueue(connection, pipeline).depths())["stage-1-interactive"].total == 0

            await eventually(acknowledged, what="the reader's ack")
        assert await PayloadStore(connection, pipeline).get(payload) == b"a red circle"


async def test_request_ends_once_when_its_task_is_stored_again_after_its_end(
    own_server: EmbeddedServer, pipeline: str
) -> None:
    """A lone server that was killed has forgotten the ids of consumed messages."""
    async with connect(own_server.url, name="test", role="test") as connection:
        spec, ledger = line(pipeline), Bucket(connection, stores.requests_bucket(pipeline))
        async with serving(connection, spec) as producer:
            submission = await producer.submit(spec, HELLO)
            await submission.result()
            await own_server.kill()
            await own_server.start()
            before = await ledger.get(submission.rid)
            (again,) = entry_tasks(submission._record.ticket, 0.0)
            subject = subjects.task(pipeline, 0, "interactive", submission.rid)
            stored = await connection.js_publish(subject, codec.encode(again.task), again.msg_id)
            assert not stored.duplicate, "the id was remembered: this test shows nothing"

            async def empty() -> bool:
                return (await WorkQueue(connection, pipeline).traffic()).messages == 0

            await eventually(empty, 10, what="the second run of its stages is over")
            assert await ledger.get(submission.rid) == before


async def test_dead_letter_is_written_when_every_attempt_fails(connection: Connection, pipeline: str) -> None:
    spec = PipelineSpec(name=pipeline, stages=(sim(0, final="text", fail_rate=1.0),), max_attempts=2)
    async with serving(connection, spec) as producer:
        submission = await producer.submit(spec, HELLO)
        result = await submission.result()
        dead = Bucket(connection, stores.requests_bucket(pipeline))
        assert await eventually(lambda: dead.get(stores.dead_letter_key(submission.rid)), what="a dead letter")
    assert result.state is RequestState.FAILED
    assert result.failure is not None
    assert result.failure.attempts == 2


@pytest.mark.usefixtures("quick_reads")
async def test_follower_ends_when_every_message_to_it_is_lost(connection: Connection, pipeline: str) -> None:
    spec = line(pipeline)
    async with serving(connection, spec) as producer:
        channel = await producer.channel(pipeline)
        await channel._subscriptions.pop().unsubscribe()
        began = time.monotonic()
        result = await (await producer.submit(spec, HELLO)).result()
    assert result.state is RequestState.DONE
    assert time.monotonic() - began < 4.0


async def test_orchestrator_forwards_nothing_when_it_was_notified_of_the_cancellation(
    connection: Connection, pipeline: str
) -> None:
    """A linear edge reads no record: the id alone tells."""
    spec = line(pipeline)
    async with serving(connection, spec, replicas=0) as producer:
        submission = await producer.submit(spec, HELLO)
        task = await queued_task(connection, pipeline, 0, submission.rid)
        await producer.cancel(pipeline, submission.rid)
        order = Cancel(rids=(submission.rid,), until=task.ticket.deadline)
        await connection.publish(subjects.ctl_all(pipeline), codec.encode(order))
        outputs = {"text": Payload.inline(b"late", TEXT)}
        late = StageResult(ticket=task.ticket, stage_id=0, replica="r0", outputs=outputs)
        await connection.js_publish(subjects.event(pipeline, 0, "result", submission.rid), codec.encode(late))
        await events_handled(connection, pipeline)
        assert not await WorkQueue(connection, pipeline).anything_queued(submission.rid)


async def test_slot_is_free_again_when_the_end_of_a_hung_job_was_missed(connection: Connection, pipeline: str) -> None:
    """Nobody here broadcasts that the deadline has passed."""
    async with stage_bench(connection, pipeline, hang_on={"rid": "^hang"}) as bench, bench.replica():
        await bench.submit("hang", seconds=0.5)
        await bench.submit("next")
        await bench.result("next", 10)
        await bench.all_done()


async def test_task_runs_elsewhere_when_the_server_is_killed_while_its_payload_is_read(
    own_server: EmbeddedServer, pipeline: str
) -> None:
    """An outage is nobody's fault: it ends no request, and uses up no attempt."""
    picture = ImagePart(data=bitmap(48 << 20))
    request = Request(messages=(Message(role="user", content=(TextPart(text="one two"), picture)),))
    async with (
        connect(own_server.url, name="test", role="test") as conn,
        connect(own_server.url, name="worker", role="worker") as worker,
        stage_bench(conn, pipeline) as bench,
        bench.replica(worker) as replica,
    ):
        payload = await PayloadStore(conn, pipeline).put(encode_request(request), REQUEST_MEDIA_TYPE, rid="a")
        task = make_task(bench.spec, "a")
        task = msgspec.structs.replace(task, ticket=replace(task.ticket, request=payload))
        await conn.js_publish(subjects.task(pipeline, 0, "interactive", "a"), codec.encode(task))
        await eventually(lambda: len(replica._claims), what="the task is in hand")
        await own_server.kill()
        await own_server.start()
        await bench.result("a", 30)
        await bench.all_done()
