"""Replicas as supervised processes of a deployed pipeline: killed, restarted, drained, refused."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.errors import StageStartError
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.death.claim_book import ClaimBook
from omnibus.registry.death.failure_detector import FailureDetector
from omnibus.registry.deployed_pipelines import deploy_pipeline
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.workers.hang_detector import HangWatch
from omnibus.workers.replica_processes import DeathReporter
from omnibus.workers.supervisor import Supervisor
from tests.support.stage_bench import HEARTBEAT_TIMEOUT, StageBench, stage_bench
from tests.support.stage_processes import stage_processes
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


@asynccontextmanager
async def supervised(
    bench: StageBench, stage: StageSpec, replicas: int
) -> AsyncIterator[tuple[Supervisor, ReplicaView]]:
    """Replicas of the stage under a supervisor, all up."""
    spec = replace(bench.spec, stages=(stage,))
    await deploy_pipeline(bench.conn, spec)
    async with (
        ReplicaView(bench.conn, spec.name, timeout=HEARTBEAT_TIMEOUT) as view,
        ClaimBook(bench.conn, spec.name) as claims,
    ):
        listener = DeathReporter(view, FailureDetector(bench.conn, spec.name, claims), bench.conn.metrics)
        supervisor = Supervisor(
            stage_processes(spec, stage, replicas, broker={"OMNIBUS_NATS_URL": bench.conn.url}, grace=5),
            grace=10,
            on_death=listener,
        )
        running = asyncio.create_task(supervisor.run())
        try:
            await view.wait_until(lambda found: sum(one.status == "up" for one in found) == replicas, 30)
            yield supervisor, view
        finally:
            supervisor.stop()
            async with asyncio.timeout(20):
                await running


def with_args(stage: StageSpec, **engine_args: object) -> StageSpec:
    return replace(stage, engine_args=engine_args)


async def test_task_of_a_killed_replica_runs_elsewhere_and_the_replica_comes_back(
    connection: Connection, pipeline: str
) -> None:
    async with stage_bench(connection, pipeline) as bench:
        stage = with_args(bench.stage, hang_on={"rid": "^hang$", "attempts": [1]})
        async with supervised(bench, stage, 2) as (supervisor, view):
            await bench.submit("hang")
            victim = await eventually(lambda: next((one for one in view.replicas() if one.in_flight), None))
            os.kill(victim.pid, signal.SIGKILL)
            killed = time.monotonic()
            result = await bench.result("hang")
            seconds = time.monotonic() - killed
            assert result.replica != victim.replica
            assert seconds < HEARTBEAT_TIMEOUT / 2, "long before any lease or heartbeat ran out"
            await view.wait_until(lambda found: sum(one.status == "up" for one in found) == 2, 20)
            assert sum(supervisor.restarts.values()) == 1
            assert victim.pid not in [one.pid for one in view.replicas() if one.alive]


async def test_others_survive_when_one_kills_the_replica_that_they_share_at_every_attempt(
    connection: Connection, pipeline: str
) -> None:
    """The claims of the dead replica come back together: each would be beside the poison three times."""
    async with stage_bench(connection, pipeline, slots=4, max_attempts=3) as bench:
        stage = with_args(bench.stage, crash_on={"rid": "^poison$"}, latency=0.3)
        others = ["a", "b", "c"]
        for rid in ("poison", *others):
            await bench.submit(rid)
        async with supervised(bench, stage, 1) as (supervisor, _):
            for rid in others:
                await bench.result(rid, 30.0)
            assert (await bench.failure("poison", 30.0)).failure.code == "attempts_exhausted"
            assert sum(supervisor.restarts.values()) == bench.spec.max_attempts


async def test_replica_that_hangs_for_good_is_started_again_and_a_healthy_one_is_left_alone(
    connection: Connection, pipeline: str
) -> None:
    async with stage_bench(connection, pipeline) as bench, supervised(bench, bench.stage, 2) as (supervisor, view):
        watching = asyncio.create_task(HangWatch(bench.conn, view, supervisor, 1.0).run(), name="hangs")
        hung = view.replicas()[0].pid
        os.kill(hung, signal.SIGSTOP)

        def is_replaced() -> bool:
            up = [one.pid for one in view.replicas() if one.status == "up"]
            return len(up) == 2 and hung not in up

        try:
            await eventually(is_replaced, HEARTBEAT_TIMEOUT + 15.0, what="another replica in its place")
        finally:
            watching.cancel()
        assert sorted(supervisor.restarts.values()) == [0, 1]


async def test_replica_whose_heartbeats_do_not_arrive_is_left_alone_while_it_answers(
    connection: Connection, pipeline: str
) -> None:
    """As when the broker has no room for them: no replica hangs, and none may lose what its engine has loaded."""
    async with stage_bench(connection, pipeline) as bench, supervised(bench, bench.stage, 1) as (supervisor, view):
        (record,) = view.replicas()
        watch = HangWatch(bench.conn, view, supervisor, 1.0)
        assert await watch._answers(record)
        os.kill(record.pid, signal.SIGSTOP)
        assert not await watch._answers(record)
        os.kill(record.pid, signal.SIGCONT)


async def test_task_runs_again_when_its_replica_crashes_on_it(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench:
        stage = with_args(bench.stage, crash_on={"rid": "^crash$", "attempts": [1]})
        async with supervised(bench, stage, 1) as (supervisor, _):
            await bench.submit("crash")
            await bench.result("crash", 20)
            await bench.all_done()
            assert sum(supervisor.restarts.values()) == 1


async def test_replicas_leave_in_order_when_stopped(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench:
        async with supervised(bench, with_args(bench.stage, latency=0.3), 2) as (supervisor, view):
            for number in range(4):
                await bench.submit(f"a{number}")
            await eventually(lambda: sum(one.in_flight for one in view.replicas()) == 2)
            supervisor.stop()
            await view.wait_until(lambda found: all(one.status == "down" for one in found), 10)
            assert supervisor.restarts == {"sim.0": 0, "sim.1": 0}
        finished = sum(bool(bench.events[f"a{number}"]) for number in range(4))
        assert finished + await bench.queued() == 4


async def test_second_signal_requeues_at_once_what_a_drain_would_wait_for(
    connection: Connection, pipeline: str
) -> None:
    async with stage_bench(connection, pipeline, max_attempts=1, heartbeat_timeout=10.0) as bench:
        stage = with_args(bench.stage, hang_on={"rid": "^hang$"})
        async with supervised(bench, stage, 1) as (supervisor, view):
            (pid,) = supervisor.pids.values()
            await bench.submit("hang")
            await eventually(lambda: view.replicas()[0].in_flight)
            os.kill(pid, signal.SIGTERM)
            await view.wait_until(lambda found: found[0].status == "draining", 5)
            os.kill(pid, signal.SIGTERM)
            async with bench.replica() as other:
                result = await bench.result("hang", 4)  # a drain has 5 s
                assert result.replica == other.record.replica
            assert supervisor.restarts == {"sim.0": 0}


def broken(engine: str, model: str = "", **engine_args: object) -> StageSpec:
    return StageSpec(
        stage_id=0, name="broken", engine=engine, model=model, engine_args=engine_args,
        final_output=True, final_output_type="text",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (broken("python", "no_such_module:f"), "no_such_module"),
        (broken("sim", no_such_argument=1), "no_such_argument"),
        (broken("sim", start_latency=60.0), "did not load within"),
    ],
    ids=["missing model", "bad argument", "too slow"],
)
async def test_replica_that_cannot_start_is_not_started_again(
    connection: Connection, pipeline: str, stage: StageSpec, says: str
) -> None:
    spec = PipelineSpec(name=pipeline, stages=(stage,), heartbeat_timeout=HEARTBEAT_TIMEOUT)
    await deploy_pipeline(connection, spec)
    supervisor = Supervisor(
        stage_processes(spec, stage, 1, broker={"OMNIBUS_NATS_URL": connection.url}, start_timeout=1.0)
    )
    async with asyncio.timeout(30):
        with pytest.raises(StageStartError, match=r"broken\.0 cannot start") as raised:
            await supervisor.run()
    assert says in str(raised.value)
    assert supervisor.restarts == {"broken.0": 0}
