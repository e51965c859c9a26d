"""Attempts count on when a task leaves the lane of one replica: a poisonous one cannot have more than its pipeline allows."""

from __future__ import annotations

import base64

import pytest

from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.client.producer import Producer
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.state import RequestState
from omnibus.wire import stores, subjects
from omnibus.wire.request import Request
from tests.support.directed import lane_log, one_stage, orchestrator, replica
from tests.support.stage_bench import stage_bench
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
HELLO = Request(prompt="a red circle")


def spec_of(pipeline: str, attempts: int, **engine_args: object) -> PipelineSpec:
    return one_stage(pipeline, max_attempts=attempts, engine_args=engine_args)


async def test_poison_is_not_run_again_when_its_one_attempt_killed_its_replica(
    connection: Connection, pipeline: str
) -> None:
    spec = spec_of(pipeline, 1)
    await ensure_layout(connection, layout_of(spec))
    async with orchestrator(connection, spec), Producer(connection) as producer:
        async with replica(connection, spec_of(pipeline, 1, hang_on={"rid": "."}), dies=True) as dying:
            submission = await producer.submit(spec, HELLO)
            await eventually(lambda: len(dying._claims) == 1)
        async with replica(connection, spec):
            result = await submission.result()
    assert result.state is RequestState.FAILED
    assert result.failure is not None
    assert (result.failure.code, result.failure.attempts) == ("attempts_exhausted", 1)


async def test_task_that_only_waited_has_all_its_attempts_when_its_replica_died(
    connection: Connection, pipeline: str
) -> None:
    spec = spec_of(pipeline, 1)
    await ensure_layout(connection, layout_of(spec))
    async with orchestrator(connection, spec), Producer(connection) as producer:
        async with replica(connection, spec_of(pipeline, 1, hang_on={"rid": "^poison"}), dies=True) as dying:
            poison = await producer.submit(spec, HELLO, rid="poison")
            await eventually(lambda: len(dying._claims) == 1)
            innocent = await producer.submit(spec, HELLO, rid="innocent")
        async with replica(connection, spec):
            assert (await innocent.result()).state is RequestState.DONE
            assert (await poison.result()).state is RequestState.FAILED


async def test_fault_on_a_lane_of_its_own_counts_when_the_task_is_tried_elsewhere(
    connection: Connection, pipeline: str
) -> None:
    spec = spec_of(pipeline, 3, fail_on={"rid": "."})
    await ensure_layout(connection, layout_of(spec))
    async with (
        orchestrator(connection, spec),
        Producer(connection) as producer,
        lane_log(connection, pipeline) as log,
        replica(connection, spec),
    ):
        result = await (await producer.submit(spec, HELLO, rid="bad")).result()
    assert result.failure is not None
    assert result.failure.attempts == 3
    first, *others = log.lanes_of("bad")
    assert (first, set(others)) == ("r0", {"interactive"}), "sent home at its second delivery, and counted on there"


async def test_attempts_count_on_when_a_task_is_requeued(connection: Connection, pipeline: str) -> None:
    failing = {"fail_on": {"attempts": [1]}, "hang_on": {"attempts": [2]}}
    async with stage_bench(connection, pipeline, max_attempts=2, **failing) as bench:
        await bench.submit("a")
        for _ in range(2):
            async with bench.replica(grace=0.1) as leaving:
                await eventually(lambda: leaving._engine.stats().running, what="it hangs in its second attempt")
        stored = await connection.api(
            f"STREAM.MSG.GET.{stores.work_stream(pipeline)}",
            {"last_by_subj": subjects.task(pipeline, 0, "interactive", "a")},
        )
    assert b"Omni-Attempts: 1\r\n" in base64.b64decode(stored["message"]["hdrs"])
