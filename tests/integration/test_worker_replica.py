"""One stage on real queues: what a replica runs, publishes and acknowledges."""

from __future__ import annotations

import pytest

from omnibus.broker.connection import Connection, ReceivedMessage
from omnibus.errors import EngineDead
from omnibus.payloads.store import PayloadStore
from omnibus.pipeline.route import Forwarding
from omnibus.wire import codec, subjects
from omnibus.wire.control import Rpc, RpcReply
from omnibus.wire.envelope import StageResult
from omnibus.wire.out import Out, Tokens
from omnibus.wire.request import Request
from omnibus.workers.engines.sim import expected_text
from omnibus.workers.replica import Replica
from tests.support.stage_bench import HEARTBEAT_TIMEOUT, StageBench, stage_bench
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


def text_of(result: StageResult) -> str:
    assert result.final is not None
    (item,) = result.final.items
    assert item.data is not None
    return item.data.decode()


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
        assert (
            timing.queued - 0.1 <= timing.started <= timing.finished + 0.1
        )  # the clock follows the server's, and may step back
        assert timing.bytes_out > 0


async def test_deltas_arrive_in_order_and_without_gaps(connection: Connection, pipeline: str) -> None:
    heard: list[Tokens] = []

    async def on_message(message: ReceivedMessage) -> None:
        heard.append(codec.decode(message.data, Out))

    async with stage_bench(connection, pipeline, tokens=50, token_rate=1000.0) as bench, bench.replica():
        await connection.subscribe(subjects.out_all(pipeline, "front"), on_message)
        await bench.submit("a", "one two three", front="front")
        result = await bench.result("a")
    assert "".join(delta.text for delta in heard) == text_of(result)
    assert [delta.offset for delta in heard] == [
        sum(len(before.text) for before in heard[:index]) for index in range(len(heard))
    ]
    assert {delta.fence.delivery for delta in heard} == {1}


async def test_no_deltas_when_the_request_does_not_stream(connection: Connection, pipeline: str) -> None:
    heard: list[ReceivedMessage] = []

    async def on_message(message: ReceivedMessage) -> None:
        heard.append(message)

    async with stage_bench(connection, pipeline) as bench, bench.replica():
        await connection.subscribe(subjects.out_all(pipeline, "front"), on_message)
        await bench.submit("a", front="front", request=Request(prompt="x", stream=False))
        await bench.result("a")
    assert heard == []


async def test_direct_edges_get_their_task_before_the_event(connection: Connection, pipeline: str) -> None:
    seen: list[str] = []

    async def see(message: ReceivedMessage) -> None:
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
