"""Directed tasks whose replica is not up are rerouted to the shared lane: published there, then deleted, never NAKed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from omnibus.broker.connection import Connection, ReceivedMessage
from omnibus.broker.delivery import consumer_of
from omnibus.broker.layout import Layout, ensure_layout, layout_of, own_lane_consumer
from omnibus.client.producer import Producer
from omnibus.errors import BrokerRefused, BrokerUnavailable
from omnibus.ledger.directed_lanes import DirectedLanes
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.death.claim_book import ClaimBook
from omnibus.registry.death.failure_detector import FailureDetector
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.requests.state import RequestState
from omnibus.wire import codec, stores, subjects
from omnibus.wire.envelope import Task
from omnibus.wire.request import Request
from tests.support.directed import LaneLog, lane_log, one_stage, orchestrator, replica
from tests.support.stage_bench import make_task
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
HELLO = Request(prompt="a red circle")
TIMEOUT = 1.0


async def publish(connection: Connection, spec: PipelineSpec, lane: str, rid: str) -> Task:
    """A task on a lane, as by a publisher who believes that its replica is up."""
    task = make_task(spec, rid)
    msg_id = subjects.message_id("task", rid, 0, 1)
    await connection.js_publish(subjects.task(spec.name, 0, lane, rid), codec.encode(task), msg_id)
    return task


async def events_of(connection: Connection, spec: PipelineSpec) -> Counter[str]:
    """Counts what stages publish, by request, but news of lost attempts: one for each time that a task was run to the end."""
    heard: Counter[str] = Counter()

    async def on_message(message: ReceivedMessage) -> None:
        event = subjects.parse_event(message.subject)
        heard[event.rid] += event.kind is not subjects.EventKind.ATTEMPT

    await connection.subscribe(subjects.events_filter(spec.name), on_message)
    return heard


async def all_home(connection: Connection, spec: PipelineSpec, log: LaneLog, rids: list[str]) -> None:
    await eventually(lambda: all("interactive" in log.lanes_of(rid) for rid in rids), what="the tasks are home")
    lanes = DirectedLanes(connection, spec.name)

    async def left() -> bool:
        return {lane for _, lane in await lanes.occupied()} <= {"interactive"}

    await eventually(left, what="nothing on a lane of its own")


@pytest.mark.parametrize("orchestrators", [1, 3])
async def test_tasks_of_a_dead_replica_run_elsewhere_once_when_it_is_declared_down(
    connection: Connection, pipeline: str, orchestrators: int
) -> None:
    spec = one_stage(pipeline, heartbeat_timeout=10.0)
    await ensure_layout(connection, layout_of(spec))
    slow = one_stage(pipeline, engine_args={"hang_on": {"rid": "."}}, heartbeat_timeout=10.0)
    async with AsyncExitStack() as stack:
        for _ in range(orchestrators):
            await stack.enter_async_context(orchestrator(connection, spec))
        claims = await stack.enter_async_context(ClaimBook(connection, pipeline))
        producer = await stack.enter_async_context(Producer(connection))
        log = await stack.enter_async_context(lane_log(connection, pipeline))
        runs = await events_of(connection, spec)
        async with replica(connection, slow, dies=True) as dying:
            rids = [f"d{number}" for number in range(5)]
            submitted = [await producer.submit(spec, HELLO, rid=rid) for rid in rids]
            assert set(log.lanes(0)) == {"r0"}
            await eventually(lambda: claims.held(dying.record))
            dead = dying.record
        async with replica(connection, spec):
            naks = await _naks_of(connection, dead)
            assert claims.held(dead), "or there would be nothing to give back"
            started = time.monotonic()
            assert await FailureDetector(connection, pipeline, claims).mark_down(dead)
            results = await asyncio.gather(*(one.result() for one in submitted))
            assert time.monotonic() - started < 1.0, "long before a heartbeat timeout"
            assert {result.state for result in results} == {RequestState.DONE}
            await all_home(connection, spec, log, rids)
        assert naks == []
        assert {rid: runs[rid] for rid in rids} == dict.fromkeys(rids, 1)


async def _naks_of(connection: Connection, record: ReplicaRecord) -> list[str]:
    """Fills with the ack subjects of the replica's own lane by which somebody gives a task back from now on."""
    heard: list[str] = []
    own = stores.stage_consumer(record.stage_id, record.replica)

    async def on_message(message: ReceivedMessage) -> None:
        if message.data.startswith(b"-NAK") and consumer_of(message.subject) == own:
            heard.append(message.subject)

    await connection.subscribe("$JS.ACK.>", on_message)
    return heard


async def test_tasks_of_a_silent_replica_are_rerouted_when_its_heartbeat_expires(
    connection: Connection, pipeline: str
) -> None:
    spec = one_stage(pipeline, heartbeat_timeout=TIMEOUT)
    hanging = one_stage(pipeline, heartbeat_timeout=TIMEOUT, engine_args={"hang_on": {"rid": "."}})
    await ensure_layout(connection, layout_of(spec))
    async with orchestrator(connection, spec), Producer(connection) as producer:
        async with replica(connection, hanging, dies=True):
            submitted = [await producer.submit(spec, HELLO) for _ in range(3)]
        async with replica(connection, spec) as other:
            assert other.record.replica == "r1"
            results = await asyncio.gather(*(one.result() for one in submitted))
            assert {result.state for result in results} == {RequestState.DONE}


async def test_task_is_rerouted_when_it_is_published_to_a_lane_without_a_consumer(
    connection: Connection, pipeline: str
) -> None:
    spec = one_stage(pipeline, heartbeat_timeout=TIMEOUT)
    await ensure_layout(connection, layout_of(spec))
    async with orchestrator(connection, spec), replica(connection, spec), lane_log(connection, pipeline) as log:
        runs = await events_of(connection, spec)
        await publish(connection, spec, "r7", "late")
        await eventually(lambda: runs["late"] == 1, 2 * TIMEOUT + 1)
        assert log.lanes_of("late") == ["r7", "interactive"]
        await all_home(connection, spec, log, ["late"])


async def test_lane_is_emptied_though_no_stage_is_directed_when_the_first_look_at_it_failed(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a redeployment: what stands on a lane then is all that will ever be there, so nothing else wakes a look."""
    spec = one_stage(pipeline, "broker", heartbeat_timeout=TIMEOUT)
    await ensure_layout(connection, layout_of(spec))
    looks, occupied = [], DirectedLanes.occupied

    async def fail_once(lanes: DirectedLanes) -> set[tuple[int, str]]:
        looks.append(lanes)
        if len(looks) == 1:
            raise BrokerUnavailable("an outage")
        return await occupied(lanes)

    monkeypatch.setattr(DirectedLanes, "occupied", fail_once)
    runs = await events_of(connection, spec)
    await publish(connection, spec, "r7", "left")
    async with orchestrator(connection, spec), replica(connection, spec):
        await eventually(lambda: runs["left"] == 1, 2 * TIMEOUT + 1)
    assert len(looks) == 2


async def test_lanes_behind_it_are_emptied_when_one_cannot_be_read(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = one_stage(pipeline, heartbeat_timeout=TIMEOUT)
    await ensure_layout(connection, layout_of(spec))
    first = DirectedLanes.first

    async def refuse_r6(lanes: DirectedLanes, stage_id: int, lane: str, after: int = 0) -> ReceivedMessage | None:
        if lane == "r6":
            raise BrokerRefused("no")
        return await first(lanes, stage_id, lane, after)

    monkeypatch.setattr(DirectedLanes, "first", refuse_r6)
    runs = await events_of(connection, spec)
    await publish(connection, spec, "r6", "never")
    await publish(connection, spec, "r7", "behind")
    async with orchestrator(connection, spec), replica(connection, spec):
        await eventually(lambda: runs["behind"] == 1, 2 * TIMEOUT + 1)
    assert not runs["never"]


@pytest.mark.parametrize("older", [True, False])
async def test_one_copy_is_rerouted_when_two_publish_the_same_task(
    connection: Connection, pipeline: str, *, older: bool
) -> None:
    """The server has another word for a message that is gone when an older one is still there."""
    spec = one_stage(pipeline)
    await ensure_layout(connection, layout_of(spec))
    if older:
        await publish(connection, spec, "r8", "before")
    await publish(connection, spec, "r7", "twice")
    lanes = DirectedLanes(connection, pipeline)
    found = await lanes.first(0, "r7")
    assert found is not None
    await lanes.reroute(found, spec.stage_lanes, used=0)
    await lanes.reroute(found, spec.stage_lanes, used=0)
    home = await lanes.first(0, "interactive")
    assert home is not None
    assert home.headers is not None
    assert await lanes.first(0, "interactive", int(home.headers["Nats-Sequence"])) is None


async def test_tasks_are_rerouted_when_an_orchestrator_starts(connection: Connection, pipeline: str) -> None:
    spec = one_stage(pipeline, heartbeat_timeout=60.0)
    await ensure_layout(connection, layout_of(spec))
    await ensure_layout(connection, Layout((), (own_lane_consumer(pipeline, 0, "r3"),)))
    rids = [f"left{number}" for number in range(3)]
    for rid in rids:
        await publish(connection, spec, "r3", rid)
    async with lane_log(connection, pipeline) as log, orchestrator(connection, spec):
        await all_home(connection, spec, log, rids)


async def test_only_waiting_tasks_are_rerouted_while_their_replica_finishes_the_rest(
    connection: Connection, pipeline: str
) -> None:
    """A rolling restart runs nothing twice."""
    spec = one_stage(pipeline, engine_args={"latency": 0.5}, heartbeat_timeout=10.0)
    await ensure_layout(connection, layout_of(spec))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(orchestrator(connection, spec))
        producer = await stack.enter_async_context(Producer(connection))
        log = await stack.enter_async_context(lane_log(connection, pipeline))
        runs = await events_of(connection, spec)
        async with replica(connection, spec, grace=5.0) as leaving:
            rids = [f"t{number}" for number in range(3)]
            submitted = [await producer.submit(spec, HELLO, rid=rid) for rid in rids]
            await eventually(lambda: len(leaving._claims) == 1)
            leaving.drain()
            await eventually(lambda: sorted(log.lanes(0)) == ["interactive", "interactive", "r0", "r0", "r0"])
        async with replica(connection, spec):
            results = await asyncio.gather(*(one.result() for one in submitted))
        assert {result.state for result in results} == {RequestState.DONE}
        assert {rid: runs[rid] for rid in rids} == dict.fromkeys(rids, 1)


async def test_claimed_task_is_rerouted_at_once_when_its_replica_dies_while_it_leaves(
    connection: Connection, pipeline: str
) -> None:
    spec = one_stage(pipeline, heartbeat_timeout=10.0)
    hanging = one_stage(pipeline, heartbeat_timeout=10.0, engine_args={"hang_on": {"rid": "."}})
    await ensure_layout(connection, layout_of(spec))
    async with (
        orchestrator(connection, spec),
        ClaimBook(connection, pipeline) as claims,
        Producer(connection) as producer,
    ):
        async with replica(connection, hanging, grace=20.0, dies=True) as leaving:
            submission = await producer.submit(spec, HELLO)
            await eventually(lambda: len(leaving._claims) == 1)
            leaving.drain()
            await eventually(lambda: leaving.record.status == "draining" and leaving.record.claims)
            dead = leaving.record
        async with replica(connection, spec):
            assert await FailureDetector(connection, pipeline, claims).mark_down(dead)
            async with asyncio.timeout(3):  # a heartbeat timeout is 10 s
                assert (await submission.result()).state is RequestState.DONE


async def test_unfinished_task_is_requeued_to_the_shared_lane_when_its_time_is_over(
    connection: Connection, pipeline: str
) -> None:
    spec = one_stage(pipeline, engine_args={"latency": 3.0}, heartbeat_timeout=10.0)
    await ensure_layout(connection, layout_of(spec))
    async with (
        orchestrator(connection, spec),
        Producer(connection) as producer,
        lane_log(connection, pipeline) as log,
    ):
        async with replica(connection, spec, grace=0.0) as leaving:
            submission = await producer.submit(spec, HELLO)
            await eventually(lambda: len(leaving._claims) == 1)
        assert log.lanes(0) == ["r0", "interactive"]
        await producer.cancel(pipeline, submission.rid)


async def test_cancelled_request_is_gone_from_a_lane_of_its_own_too(connection: Connection, pipeline: str) -> None:
    spec = one_stage(pipeline, engine_args={"hang_on": {"rid": "."}})
    await ensure_layout(connection, layout_of(spec))
    async with orchestrator(connection, spec), Producer(connection) as producer, replica(connection, spec):
        submitted = [await producer.submit(spec, HELLO) for _ in range(3)]
        for submission in submitted:
            await producer.cancel(pipeline, submission.rid)
        assert await DirectedLanes(connection, pipeline).occupied() == set()
