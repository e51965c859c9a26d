"""One stage on real queues: what a replica runs, publishes and acknowledges."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from msgspec.structs import replace

from omnibus.broker.connection import Callback, Connection, Message, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.ledger import Ledger
from omnibus.errors import EngineDead
from omnibus.payloads.store import PayloadStore
from omnibus.pipeline.route import Forwarding
from omnibus.registry.claims import ClaimBook
from omnibus.requests.record import Record
from omnibus.wire import codec, subjects
from omnibus.wire.control import Cancel, Claim, Rpc, RpcReply
from omnibus.wire.envelope import StageResult
from omnibus.wire.out import Out, Tokens
from omnibus.wire.payload import MSGPACK, ObjectKey, Payload
from omnibus.wire.request import Request
from omnibus.workers.engines.sim import expected_text
from omnibus.workers.replica import Replica
from tests.support.stage_bench import HEARTBEAT_TIMEOUT, StageBench, make_task, stage_bench
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def other_connection(nats_server: EmbeddedServer) -> AsyncIterator[Connection]:
    async with connect(nats_server.url, name="other", role="worker") as made:
        yield made


def text_of(result: StageResult) -> str:
    assert result.final is not None
    (item,) = result.final.items
    assert item.data is not None
    return item.data.decode()


async def cancel(bench: StageBench, rid: str) -> None:
    order = Cancel(rids=(rid,), until=2**40)
    await bench.conn.publish(subjects.ctl_all(bench.spec.name), codec.encode(order))


async def test_task_is_run_and_its_result_published_and_acknowledged(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, tokens=4) as bench, bench.replica() as replica:
        await bench.submit("a", "one two")
        result = await bench.result("a")
        await bench.all_done()
        assert text_of(result) == expected_text("one two", 4)
        assert result.replica == replica.record.replica == "r0"
        assert result.outputs == {}
        assert result.final is not None
        assert result.final.usage.completion_tokens == 4
        (timing,) = result.timings
        assert timing.queued <= timing.started <= timing.finished
        assert timing.bytes_out > 0


async def test_deltas_arrive_in_order_and_without_gaps(connection: Connection, pipeline: str) -> None:
    heard: list[Tokens] = []

    async def hear(message: Message) -> None:
        heard.append(codec.decode(message.data, Out))

    async with stage_bench(connection, pipeline, tokens=50, token_rate=1000.0) as bench, bench.replica():
        await connection.subscribe(subjects.out_all(pipeline, "front"), hear)
        await bench.submit("a", "one two three", front="front")
        result = await bench.result("a")
    assert "".join(delta.text for delta in heard) == text_of(result)
    assert [delta.offset for delta in heard] == [
        sum(len(before.text) for before in heard[:index]) for index in range(len(heard))
    ]
    assert {delta.fence.delivery for delta in heard} == {1}


async def test_no_deltas_when_the_request_does_not_stream(connection: Connection, pipeline: str) -> None:
    heard: list[Message] = []

    async def hear(message: Message) -> None:
        heard.append(message)

    async with stage_bench(connection, pipeline) as bench, bench.replica():
        await connection.subscribe(subjects.out_all(pipeline, "front"), hear)
        await bench.submit("a", front="front", request=Request(prompt="x", stream=False))
        await bench.result("a")
    assert heard == []


async def test_direct_edges_get_their_task_before_the_event(connection: Connection, pipeline: str) -> None:
    seen: list[str] = []

    async def see(message: Message) -> None:
        seen.append(message.subject)

    async with stage_bench(connection, pipeline) as bench, bench.replica():
        await connection.subscribe(f"omni.{pipeline}.task.1.>", see)
        await connection.subscribe(f"omni.{pipeline}.event.>", see)
        await bench.submit("a", targets=(Forwarding.DIRECT,))
        result = await bench.result("a")
        await eventually(lambda: len(seen) == 2)
    assert [subject.split(".")[2] for subject in seen] == ["task", "event"]
    assert result.outputs == {}, "no orchestrator forwards anything"


async def test_outputs_travel_in_the_event_when_an_orchestrator_forwards(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench, bench.replica():
        await bench.submit("a", targets=(Forwarding.ORCHESTRATOR,))
        assert (await bench.result("a")).outputs["text"].data == b"one two"


async def test_rejected_request_fails_at_once_with_the_engines_status(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, reject_on={"rid": "bad"}) as bench, bench.replica():
        await bench.submit("bad")
        failed = await bench.failure("bad")
        await bench.all_done()
    assert (failed.failure.code, failed.failure.http_status, failed.failure.stage_id) == ("engine_rejected", 400, 0)
    assert not failed.dead


async def test_engine_fault_is_tried_again_until_it_works(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, fail_on={"attempts": [1, 2]}) as bench, bench.replica():
        await bench.submit("a")
        await bench.result("a")
        await bench.all_done()


async def test_task_that_was_given_back_is_claimed_no_more(connection: Connection, pipeline: str) -> None:
    async with (
        ClaimBook(connection, pipeline) as claims,
        stage_bench(connection, pipeline, fail_on={"attempts": [1]}) as bench,
        bench.replica() as replica,
    ):
        heard: list[int] = []
        await connection.subscribe(subjects.claims(pipeline), _append_size(heard))
        await bench.submit("a")
        await bench.result("a")
        assert heard == [1, 0, 1], "taken, given back, taken again"
        assert claims.held(replica.record)


def _append_size(heard: list[int]) -> Callback:
    async def hear(message: Message) -> None:
        heard.append(len(codec.decode(message.data, Claim).held))

    return hear


async def test_request_ends_dead_when_every_attempt_fails(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, fail_on={"rid": "a"}, max_attempts=2) as bench, bench.replica():
        await bench.submit("a")
        failed = await bench.failure("a")
        await bench.all_done()
    assert failed.dead
    assert (failed.failure.code, failed.failure.attempts) == ("engine_error", 2)


async def test_delivery_beyond_the_attempts_is_not_run(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, max_attempts=2, hang_on={"rid": "a"}) as bench:
        await bench.submit("a")
        for _ in range(2):  # each takes the task and dies with it
            async with bench.replica(stop=False) as replica:
                await eventually(lambda: replica.record.in_flight or replica.record.status != "up", 5)
        async with bench.replica():
            failed = await bench.failure("a")
            await bench.all_done()
    assert failed.dead
    assert (failed.failure.code, failed.failure.attempts) == ("attempts_exhausted", 2)


async def test_expired_task_is_not_run(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench:
        await bench.submit("late", seconds=-1.0)
        await bench.submit("fine")
        async with bench.replica():
            await bench.result("fine")
            await bench.all_done()
        assert bench.published["late"] == 0


async def test_running_task_stops_when_its_request_is_cancelled(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, hang_on={"rid": "hang"}) as bench, bench.replica() as replica:
        await bench.submit("hang")
        await eventually(lambda: replica.record.in_flight)
        await cancel(bench, "hang")
        await bench.all_done()
        await bench.submit("next")
        await bench.result("next")
        assert bench.published["hang"] == 0


async def test_cancelled_id_is_remembered_and_dropped_when_it_still_arrives(
    connection: Connection, pipeline: str
) -> None:
    async with stage_bench(connection, pipeline) as bench, bench.replica():
        await cancel(bench, "a")
        await bench.conn.flush()
        await bench.submit("b")
        await bench.result("b")
        await bench.submit("a")
        await bench.all_done()
        assert bench.published["a"] == 0


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x80", b"\xc1"])
async def test_malformed_task_is_acknowledged_and_later_ones_run(
    connection: Connection, pipeline: str, data: bytes
) -> None:
    async with stage_bench(connection, pipeline) as bench, bench.replica():
        await connection.js_publish(subjects.task(pipeline, 0, "interactive", "unknown"), data)
        await bench.submit("a")
        await bench.result("a")
        await bench.all_done()


async def test_malformed_task_ends_the_request_that_its_subject_names(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench, bench.replica():
        record = Record(ticket=make_task(bench.spec, "a").ticket, nonce="n", digest="d")
        await Ledger(connection, pipeline).create(record)
        await connection.js_publish(subjects.task(pipeline, 0, "interactive", "a"), b"garbage")
        failed = await bench.failure("a")
        await bench.all_done()
    assert (failed.failure.code, failed.failure.http_status) == ("invalid_request", 400)
    assert "malformed" in failed.failure.message


async def test_lost_payload_is_told_at_once_so_that_the_request_can_be_run_anew(
    connection: Connection, pipeline: str
) -> None:
    lost = Payload(media_type=MSGPACK, nbytes=3, location=ObjectKey("gone"))
    async with stage_bench(connection, pipeline) as bench, bench.replica():
        task = make_task(bench.spec, "a")
        task = replace(task, ticket=replace(task.ticket, request=lost))
        await connection.js_publish(subjects.task(pipeline, 0, "interactive", "a"), codec.encode(task))
        failed = await bench.failure("a")
        await bench.all_done()
    assert failed.failure.code == "payload_lost"
    assert not failed.dead


async def test_large_result_goes_by_reference(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench, bench.replica():
        await bench.submit("a", "x", request=Request(prompt="w" * 300_000))
        result = await bench.result("a")
        assert result.final is not None
        (item,) = result.final.items
        assert item.data is None
        assert await PayloadStore(connection, pipeline).get(item) == b"w" * 300_000


async def test_engine_answers_calls(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench, bench.replica() as replica:
        known = await call(bench, replica, Rpc(method="echo", args=(1,), kwargs={"a": "b"}))
        unknown = await call(bench, replica, Rpc(method="no_such_method"))
    assert known.value is not None
    assert codec.unpack(known.value) == [[1], {"a": "b"}]
    assert unknown.error is not None
    assert "no_such_method" in unknown.error


async def test_replica_with_a_dead_engine_gives_its_tasks_back_and_ends(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, slots=2, hang_on={"attempts": [1]}) as bench:
        await bench.submit("a")
        with pytest.raises(EngineDead):
            await replica_whose_engine_dies(bench)
        async with bench.replica():
            await bench.result("a", HEARTBEAT_TIMEOUT)
            await bench.all_done()


async def replica_whose_engine_dies(bench: StageBench) -> None:
    async with bench.replica() as replica:
        await eventually(lambda: replica.record.in_flight)
        await call(bench, replica, Rpc(method="die"))
        await eventually(lambda: replica.record.status == "down")


async def call(bench: StageBench, replica: Replica, order: Rpc) -> RpcReply:
    subject = subjects.ctl(bench.spec.name, 0, replica.record.replica)
    answer: RpcReply = codec.decode((await bench.conn.request(subject, codec.encode(order))).data, RpcReply)
    assert answer.replica == replica.record.replica
    return answer


async def test_task_under_a_wrong_subject_is_malformed(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench, bench.replica():
        task = await bench.submit("a")
        await connection.js_publish(subjects.task(pipeline, 0, "interactive", "b"), codec.encode(task))
        await bench.all_done()
        assert bench.published["b"] == 0


async def test_drain_finishes_what_runs_and_takes_nothing_more(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, latency=0.3) as bench:
        async with bench.replica() as replica:
            await bench.submit("a")
            await eventually(lambda: replica.record.in_flight)
            replica.drain()
            await bench.submit("b")
        await bench.result("a")
        assert replica.record.status == "down"
        assert bench.published["b"] == 0
        async with bench.replica():
            await bench.result("b")


async def test_hand_back_uses_up_no_attempt(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, hang_on={"rid": "a"}, max_attempts=1) as bench:
        await bench.submit("a")
        for _ in range(3):
            async with bench.replica(grace=0.1) as replica:
                await eventually(lambda: replica.record.in_flight)
        assert await bench.queued() == 1
        assert bench.published["a"] == 0
        info = await connection.api(
            f"STREAM.MSG.GET.{subjects.work_stream(pipeline)}",
            {"last_by_subj": subjects.task(pipeline, 0, "interactive", "a")},
        )
        assert info["message"]["seq"] > 1


async def test_two_replicas_share_the_load(connection: Connection, other_connection: Connection, pipeline: str) -> None:
    async with (
        stage_bench(connection, pipeline, latency=0.02) as bench,
        bench.replica() as one,
        bench.replica(other_connection) as two,
    ):
        assert {one.record.replica, two.record.replica} == {"r0", "r1"}
        for number in range(20):
            await bench.submit(f"a{number}")
        results = [await bench.result(f"a{number}") for number in range(20)]
    by_replica = [result.replica for result in results]
    assert min(by_replica.count("r0"), by_replica.count("r1")) >= 5


async def test_replicas_join_and_leave_under_load_and_no_request_fails(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, slots=2, latency=(0.005, 0.03)) as bench:
        rids = [f"a{number}" for number in range(150)]
        async with bench.replica(), bench.replica():
            async with bench.replica() as leaver:
                for rid in rids[:50]:
                    await bench.submit(rid)
                await bench.result(rids[10])
                leaver.drain()
                for rid in rids[50:100]:
                    await bench.submit(rid)
            async with bench.replica() as joiner:
                for rid in rids[100:]:
                    await bench.submit(rid)
                results = [await bench.result(rid, 20) for rid in rids]
        await bench.all_done()
        assert joiner.record.instance not in {"", leaver.record.instance}
        assert [len(bench.events[rid]) for rid in rids] == [1] * len(rids)
        assert len({result.replica for result in results}) == 3, "the id of the leaver is the joiner's"


async def test_nothing_is_lost_when_the_server_is_killed_under_load(own_server: EmbeddedServer, pipeline: str) -> None:
    async with (
        connect(own_server.url, name="test", role="test") as conn,
        connect(own_server.url, name="worker", role="worker") as worker,
        stage_bench(conn, pipeline, slots=4, latency=(0.01, 0.1)) as bench,
        bench.replica(worker),
    ):
        rids = [f"a{number}" for number in range(60)]
        for rid in rids:
            await bench.submit(rid)
        await bench.result(rids[5])
        await own_server.kill()
        await own_server.start()
        for rid in rids:
            await bench.result(rid, 30)
        await bench.all_done(30)


async def test_all_lanes_are_served(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, lanes=("interactive", "batch"), latency=0.01) as bench:
        for number in range(10):
            await bench.submit(f"slow{number}", lane="batch")
            await bench.submit(f"fast{number}")
        async with bench.replica():
            await bench.all_done()
        order = list(bench.events)
        assert order.index("fast9") < order.index("slow9")
        assert len(order) == 20


async def test_slots_bound_what_runs_at_the_same_time(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, slots=3, latency=0.2) as bench, bench.replica() as replica:
        for number in range(9):
            await bench.submit(f"a{number}")
        most = 0

        def done() -> bool:
            nonlocal most
            most = max(most, len(replica._claims))
            return all(bench.events[f"a{number}"] for number in range(9))

        await eventually(done)
    assert most == 3


async def test_task_survives_the_kill_between_publish_and_ack(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench:
        async with bench.process("crashing", "crash-before-ack") as process:
            await bench.submit("a")
            async with asyncio.timeout(20):
                assert await process.wait() == -9
        await bench.result("a")
        assert await bench.queued() == 1
        async with bench.replica():
            await bench.all_done()
        assert bench.published["a"] == 2
        assert len(bench.events["a"]) == 1, "dedupe swallows the second"


async def test_replica_is_silent_when_it_missed_its_lease(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench, bench.process("slow", latency=1.5) as process:
        await bench.submit("a")
        await eventually(lambda: _claimed(bench), 20)
        os.kill(process.pid, signal.SIGSTOP)
        async with bench.replica():
            await bench.result("a")
            await bench.all_done()
            os.kill(process.pid, signal.SIGCONT)
            await said(process, "lease.lost")
            process.terminate()  # whatever it still had to say, it says before it has left
            async with asyncio.timeout(10):
                assert await process.wait() == 0
        assert bench.published["a"] == 1


async def _claimed(bench: StageBench) -> bool:
    consumer = subjects.stage_consumer(0, "interactive")
    info = await bench.conn.api(f"CONSUMER.INFO.{subjects.work_stream(bench.spec.name)}.{consumer}")
    return bool(info["num_ack_pending"])


async def said(process: asyncio.subprocess.Process, what: str) -> None:
    assert process.stderr is not None
    async with asyncio.timeout(10):
        while what not in (line := (await process.stderr.readline()).decode()):
            assert line, f"it ended without {what}"
