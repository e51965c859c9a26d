"""Payloads of a request are gone when it has ended, also where an attempt at one of its stages goes on after the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.broker.puller import Puller
from omnibus.client.producer import Submission
from omnibus.errors import BrokerUnavailable, RequestConflict
from omnibus.ledger.performer import Performer
from omnibus.ledger.work_queue import WorkQueue
from omnibus.orchestrator.intake import Intake
from omnibus.orchestrator.service import OrchestratorService
from omnibus.payloads.store import PayloadStore
from omnibus.pipeline.route import Forwarding
from omnibus.pipeline.spec import EdgeSpec, PayloadRule, PipelineSpec
from omnibus.requests.effects import PublishTask
from omnibus.requests.record import Record
from omnibus.requests.state import RequestState
from omnibus.wire import codec, stores, subjects
from omnibus.wire.envelope import StageResult, Task
from omnibus.wire.payload import Payload
from omnibus.wire.request import Request, encode_request
from omnibus.workers.assignment import Interruption
from omnibus.workers.replica import Replica, ReplicaOptions
from tests.support.flow import line, serving
from tests.support.three_nodes import ThreeNodes
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
HELLO = Request(prompt="a red circle")
LONG = "x" * 300_000
"""A prompt that does not fit into a message."""


def storing(pipeline: str, forwarding: Forwarding = Forwarding.ORCHESTRATOR) -> PipelineSpec:
    """A line whose first stage hands its text over by the object store. No lease ends while a test interleaves."""
    edge = EdgeSpec(source=0, target=1, payload=PayloadRule.OBJECT, forwarding=forwarding)
    return replace(line(pipeline, heartbeat_timeout=10.0), edges=(edge,))


async def stored(connection: Connection, pipeline: str) -> list[str]:
    """Chunks of what the hops of requests have stored."""
    bucket = stores.payloads_bucket(pipeline)
    info = await connection.api(f"STREAM.INFO.OBJ_{bucket}", {"subjects_filter": f"$O.{bucket}.C.*.*"})
    return list(info["state"].get("subjects") or ())


async def all_is_gone(connection: Connection, pipeline: str) -> None:
    async def gone() -> bool:
        return not await stored(connection, pipeline)

    await eventually(gone, what="nothing that was stored is left")


@asynccontextmanager
async def first_stage(connection: Connection, spec: PipelineSpec) -> AsyncIterator[Replica]:
    """A replica of stage 0, up, with room for one task."""
    replica = Replica(connection, spec, replace(spec.stages[0], slots=1), ReplicaOptions(grace=5.0))
    running = asyncio.create_task(replica.run())
    try:
        await eventually(lambda: replica.record.status == "up", what="the replica is up")
        yield replica
    finally:
        replica.drain()
        async with asyncio.timeout(10):
            await running


async def publish_late_result(connection: Connection, pipeline: str, submission: Submission) -> None:
    """Store an output of stage 0 and tell of it, as an attempt does that nobody waits for any more."""
    payload = await PayloadStore(connection, pipeline).put(
        b"late", "text/plain", rid=submission.rid, rule=PayloadRule.OBJECT
    )
    late = StageResult(ticket=submission._record.ticket, stage_id=0, replica="late", outputs={"text": payload})
    await connection.js_publish(subjects.event(pipeline, 0, "result", submission.rid), codec.encode(late))


class SlowStore(PayloadStore):
    """Stores only when it is let, as on a machine that hangs; `then` follows at once."""

    def __init__(self, connection: Connection, pipeline: str) -> None:
        super().__init__(connection, pipeline)
        self.reached, self.open = asyncio.Event(), asyncio.Event()
        self.then: Callable[[], None] = lambda: None

    async def put(self, *args: Any, **kwargs: Any) -> Payload:
        self.reached.set()
        await self.open.wait()
        payload = await super().put(*args, **kwargs)
        self.then()
        return payload


async def delayed(replica: Replica, connection: Connection, spec: PipelineSpec) -> SlowStore:
    """Have a replica hang just before it stores what it made."""
    store = SlowStore(connection, spec.name)
    replica._service._execution._writer._store = store
    return store


async def test_nothing_stays_when_a_request_is_cancelled_whose_record_knows_of_no_stage(
    connection: Connection, pipeline: str
) -> None:
    """A linear edge writes no record: what the first stage stored stands in no timing of it."""
    spec = storing(pipeline)
    async with serving(connection, spec, replicas=0) as producer, first_stage(connection, spec):
        submission = await producer.submit(spec, HELLO)
        await eventually(lambda: stored(connection, pipeline), what="stage 0 has stored its text")
        await producer.cancel(pipeline, submission.rid)
        await all_is_gone(connection, pipeline)


@pytest.mark.parametrize("forwarding", list(Forwarding))
@pytest.mark.parametrize("why", [None, Interruption.ABANDONED, Interruption.CANCELLED])
async def test_nothing_stays_when_an_attempt_stores_after_another_was_first(
    connection: Connection, pipeline: str, why: Interruption | None, forwarding: Forwarding
) -> None:
    """It finds its results known, itself declared down, or the request's end told."""
    spec = storing(pipeline, forwarding)
    async with serving(connection, spec, replicas=0) as producer, first_stage(connection, spec) as slow:
        store = await delayed(slow, connection, spec)
        submission = await producer.submit(spec, HELLO)
        await asyncio.wait_for(store.reached.wait(), 5.0)
        ((_, ack_subject),) = slow._claims.held
        async with serving(connection, spec):
            await connection.publish(ack_subject, b"-NAK")  # as whoever declares it down
            assert (await submission.result()).state is RequestState.DONE
            await all_is_gone(connection, pipeline)
        if why is not None:
            store.then = lambda: slow._claims.interrupt(why)
        store.open.set()
        await eventually(lambda: not len(slow._claims), what="the slow attempt is over")
        await all_is_gone(connection, pipeline)


async def test_nothing_stays_when_a_result_of_a_cancelled_request_comes_late(
    connection: Connection, pipeline: str
) -> None:
    """Its worker had not heard of the end; the orchestrator, which had, drops the result."""
    spec = storing(pipeline)
    async with serving(connection, spec, replicas=0) as producer:
        submission = await producer.submit(spec, HELLO)
        await producer.cancel(pipeline, submission.rid)
        await publish_late_result(connection, pipeline, submission)
        await all_is_gone(connection, pipeline)


async def test_nothing_stays_when_a_result_of_a_done_request_comes_late(connection: Connection, pipeline: str) -> None:
    """Its task was there twice, and the other copy was first: the broker takes what follows from it for a repetition."""
    spec = storing(pipeline)
    async with serving(connection, spec) as producer:
        submission = await producer.submit(spec, HELLO)
        assert (await submission.result()).state is RequestState.DONE
        await publish_late_result(connection, pipeline, submission)
        await all_is_gone(connection, pipeline)


async def test_what_is_stored_stays_when_an_attempt_repeats_its_own_task(connection: Connection, pipeline: str) -> None:
    """Its first publication was not acknowledged, so it came again: what it refers to is still to be read."""
    spec = storing(pipeline, Forwarding.DIRECT)
    async with serving(connection, spec, replicas=0) as producer, first_stage(connection, spec) as replica:
        store = await delayed(replica, connection, spec)
        submission = await producer.submit(spec, HELLO)
        await asyncio.wait_for(store.reached.wait(), 5.0)
        (assignment,) = replica._claims._held
        store.open.set()
        await eventually(lambda: assignment.acknowledged, what="stage 0 has finished")
        subject = subjects.task(pipeline, 1, "interactive", submission.rid)
        sent = await connection.retried_request(f"$JS.API.DIRECT.GET.{stores.work_stream(pipeline)}.{subject}")
        assert not await replica._performer.publish(PublishTask(codec.decode(sent.data, Task))), "it is known"
        await replica._service._conclusion._clear_orphans(assignment)
        async with serving(connection, spec):
            assert (await submission.result()).run == 1
        await all_is_gone(connection, pipeline)


@pytest.mark.parametrize("end", [RequestState.DONE, RequestState.FAILED])
async def test_input_is_not_kept_twice_when_a_request_is_submitted_again(
    connection: Connection, pipeline: str, end: RequestState
) -> None:
    """Neither while it is open nor after its end, and not that of another request that wanted its id."""
    spec, same, other = line(pipeline), Request(prompt=LONG), Request(prompt=f"not {LONG}")
    failing = {"s0": {"reject_on": {"rid": "."}}} if end is RequestState.FAILED else {}
    same = replace(same, sampling_params=failing)
    async with serving(connection, spec, replicas=0) as producer:
        await producer.submit(spec, same, rid="mine")
        (kept,) = await stored(connection, pipeline)
        for _ in range(2):
            assert (await producer.submit(spec, same, rid="mine")).attached
            with pytest.raises(RequestConflict):
                await producer.submit(spec, other, rid="mine")
            assert await stored(connection, pipeline) == [kept]
        async with serving(connection, spec):
            assert (await producer.wait(pipeline, "mine")).state is end
        left = [kept] if end is RequestState.FAILED else []

        async def settled() -> bool:
            return await stored(connection, pipeline) == left

        await eventually(settled, what="the end has removed what nobody needs")
        assert (await producer.submit(spec, same, rid="mine")).attached
        assert await settled()


async def test_input_is_not_kept_when_a_raw_request_comes_again_after_its_end(
    connection: Connection, pipeline: str
) -> None:
    """The orchestrator that admitted it died before its ack; the request ran to its end meanwhile."""
    spec = line(pipeline)
    await ensure_layout(connection, layout_of(spec))
    await connection.js_publish(subjects.request(pipeline, "raw"), encode_request(Request(prompt=LONG)))
    async with Puller(connection, stores.requests_stream(pipeline), [stores.REQUESTS_CONSUMER]) as puller:
        puller.add_credit()
        delivery = await puller.take()
    performer = Performer(connection, pipeline)
    intake = Intake(connection, performer, spec)
    assert await intake.handle(delivery)

    async def done() -> bool:
        entry = await performer.ledger.read("raw")
        return entry is not None and entry.record.state is RequestState.DONE

    async with serving(connection, spec):
        await eventually(done, what="it is done")
        await all_is_gone(connection, pipeline)
        assert await intake.handle(delivery)
        await delivery.ack()
        assert not await stored(connection, pipeline)


async def test_what_a_killed_server_brings_back_goes_and_what_is_open_stays(
    own_server: EmbeddedServer, pipeline: str
) -> None:
    """It acknowledges a removal before that is in its files: now and then a payload is there again after a kill."""
    spec = line(pipeline)
    async with connect(own_server.url, name="test") as connection, serving(connection, spec, replicas=0) as producer:
        async with serving(connection, spec, orchestrators=0):
            done = await producer.submit(spec, HELLO)
            assert (await done.result()).state is RequestState.DONE
        await producer.submit(spec, Request(prompt=LONG), rid="open")
        (kept,) = {subject.split(".")[-2] for subject in await stored(connection, pipeline)}
        await PayloadStore(connection, pipeline).put(b"again", "text/plain", rid=done.rid, rule=PayloadRule.OBJECT)
        performer = Performer(connection, pipeline)
        await performer.queue.schedule_deadline(done.rid, done.ticket.nonce, connection.clock.now() + 100.0)
        assert await performer.present() == {done.rid: True, "open": True}
        await own_server.kill()
        await own_server.start()

        async def settled() -> bool:
            return await performer.present() == {"open": True}

        await eventually(settled, what="what the ended request had is gone")
        assert [subject.split(".")[-2] for subject in await stored(connection, pipeline)] == [kept]
        assert await performer.queue.anything_queued("open")


async def test_questions_about_ended_requests_are_answered_side_by_side_and_in_bounds_when_many_come(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = line(pipeline)
    await ensure_layout(connection, layout_of(spec))
    service = OrchestratorService(connection, spec)
    clear, waiting, most, together = service._performer.clear_orphans, 0, 0, asyncio.Event()

    async def slow(rid: str) -> Record | None:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        if waiting == 32:
            together.set()
        await together.wait()
        waiting -= 1
        return await clear(rid)

    running, asker = asyncio.create_task(service.run()), Performer(connection, pipeline)

    async def listens() -> bool:
        try:
            await asker.ask_orphans("somebody")
        except BrokerUnavailable:
            return False
        return True

    try:
        await eventually(listens, what="the orchestrator listens")
        monkeypatch.setattr(service._performer, "clear_orphans", slow)
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*(asker.ask_orphans(f"r{number}") for number in range(100)))
    finally:
        running.cancel()
        await asyncio.wait((running,))
    assert answers == [0] * 100
    assert most == 32


async def test_timer_that_was_not_removed_goes_when_the_queue_has_a_new_leader(pipeline: str, tmp_path: Path) -> None:
    spec = line(pipeline)
    async with (
        ThreeNodes(tmp_path) as nodes,
        connect(nodes.url, name="test", deadline=30.0) as connection,
        serving(connection, spec, copies=3, ready=20.0) as producer,
    ):
        submission = await producer.submit(spec, HELLO)
        await submission.result()
        queue = WorkQueue(connection, pipeline)
        await queue.schedule_deadline(submission.rid, "nonce", time.time() + 600)
        led = await queue.led_by()
        assert led is not None
        await connection.api(f"STREAM.LEADER.STEPDOWN.{stores.work_stream(pipeline)}")

        async def cleared() -> bool:
            return submission.rid not in await queue.present()

        await eventually(cleared, 20.0, what="the timer is gone")
        assert await queue.led_by() != led
