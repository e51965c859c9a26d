"""Coordinator, directed policies: whoever publishes a task chooses its replica, and the replica reads its own lane first."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from msgspec.structs import replace as with_fields

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.client.producer import Producer
from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.pipeline.route import Forwarding
from omnibus.pipeline.spec import EdgeSpec, PipelineSpec
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from omnibus.requests.state import RequestState
from omnibus.wire import codec, stores, subjects
from omnibus.wire.request import Request, encode_request
from tests.support.directed import lane_log, one_stage, orchestrator, replica
from tests.support.flow import line, serving, sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
HELLO = Request(prompt="a red circle")
POLICIES = tuple(policy for policy in LoadBalancingPolicy if policy.directed)


async def consumers(connection: Connection, pipeline: str) -> set[str]:
    listed = await connection.api(f"CONSUMER.NAMES.{stores.work_stream(pipeline)}", {})
    return {str(name) for name in listed["consumers"] or ()}


async def finish(producer: Producer, spec: PipelineSpec, count: int) -> None:
    submitted = [await producer.submit(spec, HELLO) for _ in range(count)]
    results = await asyncio.gather(*(submission.result() for submission in submitted))
    assert {result.state for result in results} == {RequestState.DONE}


@pytest.mark.parametrize("policy", POLICIES)
async def test_every_replica_gets_its_tasks_when_a_policy_directs_them(
    connection: Connection, pipeline: str, policy: LoadBalancingPolicy
) -> None:
    spec = one_stage(pipeline, policy)
    async with lane_log(connection, pipeline) as log, serving(connection, spec, replicas=2) as producer:
        await finish(producer, spec, 20)
        counted = Counter(log.lanes(0))
        assert set(counted) == {"r0", "r1"}
        assert counted.total() == 20
        if policy != "random":
            assert counted["r0"] == 10, "in turn, or because each choice counts at once"


async def test_worker_directs_what_it_forwards_itself(connection: Connection, pipeline: str) -> None:
    spec = line(pipeline, Forwarding.DIRECT)
    first, second = spec.stages
    spec = with_fields(spec, stages=(first, with_fields(second, lb_policy="round-robin")))
    async with lane_log(connection, pipeline) as log, serving(connection, spec, replicas=2) as producer:
        await finish(producer, spec, 8)
        assert set(log.lanes(0)) == {"interactive"}
        assert set(log.lanes(1)) == {"r0", "r1"}


async def test_orchestrator_directs_what_it_forwards_and_admits(connection: Connection, pipeline: str) -> None:
    spec = PipelineSpec(
        name=pipeline,
        stages=(
            with_fields(sim(0), lb_policy="round-robin"),
            with_fields(sim(1, 0, final="text"), lb_policy="least-queue-length"),
        ),
        edges=(EdgeSpec(source=0, target=1),),
        heartbeat_timeout=1.0,
    )
    async with lane_log(connection, pipeline) as log, serving(connection, spec, replicas=2) as producer:
        for number in range(4):
            await connection.js_publish(subjects.request(pipeline, f"raw{number}"), encode_request(HELLO))
        await eventually(lambda: len(log.lanes(1)) == 4)
        for number in range(4):
            result = await producer.wait(pipeline, f"raw{number}")
            assert result.state is RequestState.DONE
        assert set(log.lanes(0)) == {"r0", "r1"}
        assert Counter(log.lanes(1)) == {"r0": 2, "r1": 2}


async def test_shared_lane_is_used_when_no_replica_is_up(connection: Connection, pipeline: str) -> None:
    spec = one_stage(pipeline)
    await ensure_layout(connection, layout_of(spec))
    async with lane_log(connection, pipeline) as log, orchestrator(connection, spec), Producer(connection) as producer:
        submission = await producer.submit(spec, HELLO)
        assert log.lanes(0) == ["interactive"]
        async with replica(connection, spec):
            assert (await submission.result()).state is RequestState.DONE


async def test_shared_lane_is_read_while_the_own_one_is_never_empty(connection: Connection, pipeline: str) -> None:
    spec = one_stage(pipeline, engine_args={"latency": 0.02}, heartbeat_timeout=5.0)
    await ensure_layout(connection, layout_of(spec))
    async with orchestrator(connection, spec), Producer(connection) as producer:
        home = await producer.submit(spec, HELLO)
        async with replica(connection, spec):
            own = [await producer.submit(spec, HELLO) for _ in range(60)]
            assert (await home.result()).state is RequestState.DONE
            last = await own[-1].result()
            assert (await home.result()).timings[0].finished < last.timings[0].finished


async def test_own_lane_is_made_by_an_orchestrator_and_removed_when_a_replica_comes_and_leaves(
    connection: Connection, pipeline: str
) -> None:
    spec = one_stage(pipeline, heartbeat_timeout=0.3)
    await ensure_layout(connection, layout_of(spec))
    before = await consumers(connection, pipeline)

    async def beyond_the_layout(names: set[str]) -> bool:
        return await consumers(connection, pipeline) - before == names

    async with replica(connection, spec), Producer(connection) as producer:
        assert await beyond_the_layout(set()), "a replica makes none"
        async with orchestrator(connection, spec):
            await eventually(lambda: beyond_the_layout({"stage-0-r0"}), what="the lane can be read")
            await finish(producer, spec, 5)
    await eventually(lambda: beyond_the_layout(set()), 30, what="the server removes what nobody reads")


async def test_own_lane_is_made_again_when_it_is_lost_while_its_replica_is_up(
    connection: Connection, pipeline: str
) -> None:
    spec = one_stage(pipeline)
    await ensure_layout(connection, layout_of(spec))
    async with orchestrator(connection, spec), Producer(connection) as producer, replica(connection, spec):
        await finish(producer, spec, 1)
        await connection.api(f"CONSUMER.DELETE.{stores.work_stream(pipeline)}.stage-0-r0")
        await finish(producer, spec, 5)


async def test_shared_lane_is_left_alone_when_a_replica_registers_under_its_name(
    connection: Connection, pipeline: str
) -> None:
    spec = one_stage(pipeline)
    await ensure_layout(connection, layout_of(spec))
    info = f"CONSUMER.INFO.{stores.work_stream(pipeline)}.stage-0-interactive"
    before = (await connection.api(info))["config"]
    async with orchestrator(connection, spec), replica(connection, spec):
        bucket = Bucket(connection, stores.replicas_bucket(pipeline))
        for name, stage in (("interactive", 0), ("r9", 0)):
            false = ReplicaRecord(stage_id=stage, replica=name, instance="false", directed=True)
            await bucket.put(f"{stage}.{name}", codec.encode(false))
        await eventually(lambda: _has(connection, pipeline, "stage-0-r9"), what="the lanes were looked at")
        assert (await connection.api(info))["config"] == before


async def _has(connection: Connection, pipeline: str, consumer: str) -> bool:
    return consumer in await consumers(connection, pipeline)


async def test_replicas_have_no_lane_of_their_own_when_the_broker_balances(
    connection: Connection, pipeline: str
) -> None:
    spec = one_stage(pipeline, "broker")
    async with lane_log(connection, pipeline) as log, serving(connection, spec, replicas=2) as producer:
        await finish(producer, spec, 4)
        assert set(log.lanes(0)) == {"interactive"}
        assert "stage-0-r0" not in await consumers(connection, pipeline)


async def test_replica_reads_its_new_lane_when_its_id_was_given_away(connection: Connection, pipeline: str) -> None:
    spec = one_stage(pipeline)
    async with lane_log(connection, pipeline) as log, serving(connection, spec) as producer:
        await finish(producer, spec, 1)
        bucket = Bucket(connection, stores.replicas_bucket(pipeline))
        key = stores.replica_key(0, "r0")
        found = await bucket.get(key)
        assert found is not None
        record = codec.decode(found.value, ReplicaRecord)
        stranger = with_fields(record, instance="stranger", status=ReplicaStatus.STARTING)
        await bucket.put(key, codec.encode(stranger))

        async def moved() -> bool:
            await finish(producer, spec, 1)
            return log.lanes(0)[-1] == "r1"

        await eventually(moved, 10)


async def test_queue_length_counts_what_waits_on_the_own_lane(connection: Connection, pipeline: str) -> None:
    """Coordinator: the queue length is fresh at every beat."""
    spec = one_stage(pipeline, engine_args={"hang_on": {"rid": "hang"}})
    await ensure_layout(connection, layout_of(spec))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(orchestrator(connection, spec))
        producer = await stack.enter_async_context(Producer(connection))
        made = await stack.enter_async_context(replica(connection, spec))
        for number in range(4):
            await producer.submit(spec, HELLO, rid=f"hang{number}")
        await eventually(lambda: made.record.queue_length == 4 and made.record.in_flight == 1)
        for number in range(4):
            await producer.cancel(pipeline, f"hang{number}")
        await eventually(lambda: made.record.queue_length == 0)
