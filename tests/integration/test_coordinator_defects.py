"""Coordinator: what is known to go wrong in vLLM-Omni, each as a test that would fail under its behaviour."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.client.producer import Producer
from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.presence.coordinator import OmniCoordClientForHub, OmniCoordClientForStage
from omnibus.registry.presence.replica_record import ReplicaStatus
from omnibus.registry.presence.replica_view import ReplicaChange, ReplicaView
from omnibus.requests.state import RequestState
from omnibus.wire.request import Request
from tests.support.broker import lay_out
from tests.support.directed import lane_log, one_stage, orchestrator, replica
from tests.support.flow import sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
HELLO = Request(prompt="a red circle")
BOTH: tuple[LoadBalancingPolicy, ...] = ("broker", "round-robin")


async def done(producer: Producer, spec: PipelineSpec, count: int = 1) -> None:
    submitted = [await producer.submit(spec, HELLO) for _ in range(count)]
    results = await asyncio.gather(*(submission.result() for submission in submitted))
    assert {result.state for result in results} == {RequestState.DONE}


async def test_nothing_is_forgotten_when_the_registry_restarts(own_server: EmbeddedServer, pipeline: str) -> None:
    """Known defect of vLLM-Omni: a coordinator that restarts forgets the cluster for ever."""
    async with AsyncExitStack() as stack:
        conn = await stack.enter_async_context(connect(own_server.url, name="test", role="test"))
        await lay_out(conn, pipeline, heartbeat_timeout=2.0)
        stages = [OmniCoordClientForStage(conn, pipeline, number % 2, heartbeat_timeout=2.0) for number in range(6)]
        for stage in stages:
            await stack.enter_async_context(stage)
        hub = await stack.enter_async_context(OmniCoordClientForHub(conn, pipeline, heartbeat_timeout=2.0))
        known = [(one.stage_id, one.replica, one.instance) for one in hub.get_replica_list().replicas]
        assert len(known) == 6
        await own_server.kill()
        await own_server.start()
        await conn.wait_connected(10)
        async with OmniCoordClientForHub(conn, pipeline, heartbeat_timeout=2.0) as late:
            found = [(one.stage_id, one.replica, one.instance) for one in late.get_replica_list().replicas]
        assert found == known, "a newcomer sees what was registered before the restart"
        beaten = {one.instance: one.last_heartbeat for one in hub.get_replica_list().replicas}
        await eventually(
            lambda: all(one.last_heartbeat > beaten[one.instance] + 2.0 for one in hub.get_replica_list().replicas), 15
        )
        assert [(one.stage_id, one.replica, one.instance) for one in hub.get_replica_list().replicas] == known


@pytest.mark.parametrize("policy", BOTH)
async def test_replica_serves_again_when_it_beats_after_a_gap(
    connection: Connection, pipeline: str, policy: LoadBalancingPolicy
) -> None:
    """Known defect of vLLM-Omni: a replica that was silent for longer than the timeout is never attached again."""
    spec = one_stage(pipeline, policy, heartbeat_timeout=1.0)
    await ensure_layout(connection, layout_of(spec))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(orchestrator(connection, spec))
        producer = await stack.enter_async_context(Producer(connection))
        view = await stack.enter_async_context(ReplicaView(connection, pipeline, timeout=1.0))
        made = await stack.enter_async_context(replica(connection, spec))
        await done(producer, spec)
        resume = made._registration._try_beat
        made._registration._try_beat = _nothing  # type: ignore[method-assign]
        await view.wait_until(lambda found: not found, 5)
        made._registration._try_beat = resume  # type: ignore[method-assign]
        await view.wait_until(lambda found: [one.status for one in found] == ["up"], 2)
        async with lane_log(connection, pipeline) as log:
            await done(producer, spec)
        assert made.record.replica == "r0", "nobody had taken its id"
        assert log.lanes(0) == ["interactive" if policy == "broker" else "r0"]


async def _nothing() -> None:
    """No beat."""


@pytest.mark.parametrize("timeout", [1.0, 3.0])
async def test_healthy_replicas_do_not_flap_when_the_timeout_is_short(
    connection: Connection, pipeline: str, timeout: float
) -> None:
    """Known defect of vLLM-Omni: heartbeats come every 5 s whatever the timeout, so that 3 s declares all dead in turn."""
    changes: list[ReplicaChange] = []
    await lay_out(connection, pipeline, heartbeat_timeout=timeout)
    async with AsyncExitStack() as stack:
        for _ in range(3):
            client = OmniCoordClientForStage(connection, pipeline, 0, heartbeat_timeout=timeout)
            await stack.enter_async_context(client)
        view = await stack.enter_async_context(ReplicaView(connection, pipeline, timeout=timeout))
        hub = await stack.enter_async_context(OmniCoordClientForHub(connection, pipeline, heartbeat_timeout=timeout))
        view.on_change(changes.append)
        start = hub.get_replica_list().replicas[0].last_heartbeat
        await eventually(
            lambda: all(one.last_heartbeat > start + 2 * timeout for one in hub.get_replica_list().replicas),
            4 * timeout + 2,
        )
        assert {record.status for one in changes for record in (one.before, one.after) if record} == {ReplicaStatus.UP}
        assert all(one.before and one.after for one in changes), "nobody came or went"
        assert [one.status for one in hub.get_replica_list().replicas] == [ReplicaStatus.UP] * 3


async def test_late_joiner_sees_everybody_at_once_when_there_are_many(connection: Connection, pipeline: str) -> None:
    """Known defect of vLLM-Omni: it takes up to 4.6 s."""
    await lay_out(connection, pipeline)
    async with AsyncExitStack() as stack:
        for number in range(40):
            await stack.enter_async_context(OmniCoordClientForStage(connection, pipeline, number % 4))
        started = time.monotonic()
        async with OmniCoordClientForHub(connection, pipeline) as hub:
            assert time.monotonic() - started < 0.5
            assert len(hub.get_replica_list().replicas) == 40
            assert {one.stage_id for one in hub.get_replicas_for_stage(2).replicas} == {2}
            assert len(hub.get_replicas_for_stage(2).replicas) == 10
            assert time.time() - hub.get_replica_list().timestamp < 0.5


@pytest.mark.parametrize("policy", BOTH)
async def test_unrelated_requests_see_no_delay_when_a_stage_has_no_replicas(
    connection: Connection, pipeline: str, policy: LoadBalancingPolicy
) -> None:
    """Known defect of vLLM-Omni: a forward to a dead stage stalls every other request for 10 s."""
    first, text, image = (
        one_stage(pipeline, policy).stages[0],
        sim(1, 0, final="audio", outputs={"audio": "audio"}),
        sim(2, 0, final="image", outputs={"image": "image"}),
    )
    spec = PipelineSpec(name=pipeline, stages=(first, text, image), heartbeat_timeout=1.0, deadline=3.0)
    await ensure_layout(connection, layout_of(spec))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(orchestrator(connection, spec))
        producer = await stack.enter_async_context(Producer(connection))
        for stage in (first, image):
            await stack.enter_async_context(replica(connection, spec, stage))
        stuck = [await producer.submit(spec, Request(prompt="a", modalities=("audio",))) for _ in range(20)]
        started = time.monotonic()
        for _ in range(5):
            submission = await producer.submit(spec, Request(prompt="a", modalities=("image",)))
            assert (await submission.result()).state is RequestState.DONE
        assert time.monotonic() - started < 1.0
        ends = await asyncio.gather(*(submission.result() for submission in stuck))
        assert {result.state for result in ends} == {RequestState.EXPIRED}, "they fail by their deadline"


@pytest.mark.parametrize("policy", BOTH)
async def test_replicas_attach_and_detach_at_any_time(
    connection: Connection, pipeline: str, policy: LoadBalancingPolicy
) -> None:
    """Dynamic attach and detach: in any order, while requests come in, and none is lost."""
    spec = one_stage(pipeline, policy, engine_args={"latency": 0.01})
    await ensure_layout(connection, layout_of(spec))
    async with orchestrator(connection, spec), Producer(connection) as producer:
        early = await producer.submit(spec, HELLO)
        async with replica(connection, spec, grace=2.0) as first:
            assert (await early.result()).state is RequestState.DONE
            async with replica(connection, spec, grace=2.0) as second:
                assert (first.record.replica, second.record.replica) == ("r0", "r1")
                await done(producer, spec, 10)
            async with replica(connection, spec, dies=True):
                await done(producer, spec, 4)
            await done(producer, spec, 10)
        between = await producer.submit(spec, HELLO)
        async with replica(connection, spec, grace=2.0):
            assert (await between.result()).state is RequestState.DONE
