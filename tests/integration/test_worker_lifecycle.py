"""Replicas share, join, drain, requeue and die; their tasks do not."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from msgspec.structs import replace

from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.child_process import ChildProcess
from omnibus.wire import stores, subjects
from omnibus.workers import task_service
from tests.support.stage_bench import HEARTBEAT_TIMEOUT, StageBench, stage_bench
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def other_connection(nats_server: EmbeddedServer) -> AsyncIterator[Connection]:
    async with connect(nats_server.url, name="other", role="worker") as made:
        yield made


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


async def test_requeue_uses_up_no_attempt(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, hang_on={"rid": "a"}, max_attempts=1) as bench:
        await bench.submit("a")
        for _ in range(3):
            async with bench.replica(grace=0.1) as replica:
                await eventually(lambda: replica.record.in_flight)
        assert await bench.queued() == 1
        assert bench.published["a"] == 0
        info = await connection.api(
            f"STREAM.MSG.GET.{stores.work_stream(pipeline)}",
            {"last_by_subj": subjects.task(pipeline, 0, "interactive", "a")},
        )
        assert info["message"]["seq"] > 1


async def test_requeue_does_not_wait_for_an_engine_that_hangs(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_service, "ABORT_TIMEOUT", 2.0)
    async with (
        stage_bench(connection, pipeline, hang_on={"rid": "a"}, max_attempts=1) as bench,
        bench.replica(grace=0.0) as leaver,
    ):
        leaver._engine.abort = _hang  # type: ignore[method-assign]
        await bench.submit("a")
        await eventually(lambda: len(leaver._claims))
        bench.stage = replace(bench.stage, engine_args={})
        async with bench.replica():
            leaver.drain()
            started = time.monotonic()
            await bench.result("a")
            assert time.monotonic() - started < task_service.ABORT_TIMEOUT


async def _hang(_rid: str) -> None:
    await asyncio.Event().wait()


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
    async with stage_bench(connection, pipeline) as bench, bench.process("slow", latency=3.0) as process:
        await bench.submit("a")
        await eventually(lambda: _claimed(bench), 20)
        os.kill(process.pid, signal.SIGSTOP)
        async with bench.replica():
            await bench.result("a")
            await bench.all_done()
            await asyncio.sleep(
                HEARTBEAT_TIMEOUT / 2
            )  # its lease began a little later on its own clock than on the server's
            os.kill(process.pid, signal.SIGCONT)
            await said(process, "lease.lost")
            process.terminate()  # whatever it still had to say, it says before it has left
            async with asyncio.timeout(10):
                assert await process.wait() == 0
        assert bench.published["a"] == 1


async def _claimed(bench: StageBench) -> bool:
    consumer = stores.stage_consumer(0, "interactive")
    info = await bench.conn.api(f"CONSUMER.INFO.{stores.work_stream(bench.spec.name)}.{consumer}")
    return bool(info["num_ack_pending"])


async def said(process: ChildProcess, what: str) -> None:
    assert process.stderr is not None
    async with asyncio.timeout(10):
        while what not in (line := (await process.stderr.readline()).decode()):
            assert line, f"it ended without {what}"
