"""A pause and a sleep are of the whole stage: replicas that join or start again meanwhile obey them, too."""

from __future__ import annotations

import asyncio
import json
from typing import Self

import pytest

from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.client.controls import Controls
from omnibus.client.producer import Producer
from omnibus.client.rolling_restart import restart_replicas
from omnibus.errors import InvalidRequest
from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.deployed_pipelines import deploy_pipeline, list_deployed
from omnibus.registry.pause_state import PauseState, PauseStates
from omnibus.requests.state import RequestState
from omnibus.wire.request import Request
from omnibus.workers.replica import Replica, ReplicaOptions
from tests.integration.test_facade_controls import callable_stage
from tests.support.directed import one_stage, orchestrator
from tests.support.served import omnibus
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
HELLO = Request(prompt="a red circle")


class Fleet:
    """Replicas of stage 0 that a test starts and drains; at the end all leave."""

    def __init__(self, connection: Connection, spec: PipelineSpec) -> None:
        self._connection, self._spec = connection, spec
        self._running: dict[Replica, asyncio.Task[None]] = {}

    async def start(self, wanted: str, instance: str = "") -> Replica:
        options = ReplicaOptions(grace=0.1, supervised=True, instance=instance)
        made = Replica(self._connection, self._spec, self._spec.stages[0], options)
        running = self._running[made] = asyncio.create_task(made.run(), name="replica")
        await eventually(lambda: running.done() or made.record.status == wanted, what=f"the replica is {wanted}")
        return made

    async def leave(self, replica: Replica) -> None:
        replica.drain()
        async with asyncio.timeout(10):
            await self._running.pop(replica)

    async def __aenter__(self) -> Self:
        await ensure_layout(self._connection, layout_of(self._spec))
        return self

    async def __aexit__(self, *_: object) -> None:
        for replica in tuple(self._running):
            await self.leave(replica)


@pytest.mark.parametrize("policy", ["broker", "round-robin"])
async def test_replica_that_joins_or_starts_again_is_paused_until_its_stage_is_resumed(
    connection: Connection, pipeline: str, policy: LoadBalancingPolicy
) -> None:
    spec = one_stage(pipeline, policy)
    controls = Controls(connection, spec)
    async with Fleet(connection, spec) as fleet, orchestrator(connection, spec), Producer(connection) as producer:
        first = await fleet.start("up")
        await controls.pause_generation()
        second = await fleet.start("draining")
        await fleet.leave(first)
        first = await fleet.start("draining")
        for one in (first, second):
            await eventually(lambda one=one: one.record.ready, what="it counts for those who wait until all is there")
        assert await controls.is_paused()
        waiting = await producer.submit(spec, HELLO)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await waiting.result()
        await controls.resume_generation()
        assert (await waiting.result()).state is RequestState.DONE
        assert (await fleet.start("up")).record.status == "up"


async def test_paused_stage_can_be_restarted_and_stays_paused(connection: Connection, pipeline: str) -> None:
    """The test is the supervisor: it starts the replica again."""
    spec = one_stage(pipeline, "broker")
    async with Fleet(connection, spec) as fleet:
        first = await fleet.start("up")
        await Controls(connection, spec).pause_generation()
        rolling = asyncio.create_task(restart_replicas(connection, spec, 0, timeout=10), name="rolling")
        await eventually(lambda: first.comes_back, what="the replica was told to leave")
        await fleet.leave(first)
        await fleet.start("draining")
        assert await rolling == 1


async def test_stage_without_replicas_can_be_paused_and_its_first_one_waits(
    connection: Connection, pipeline: str
) -> None:
    spec = one_stage(pipeline, "broker")
    controls = Controls(connection, spec)
    async with Fleet(connection, spec) as fleet:
        assert not await controls.is_paused()
        await controls.pause_generation("wait")
        assert await controls.is_paused()
        await fleet.start("draining")
        await controls.resume_generation()
        assert not await controls.is_paused()


async def test_replica_is_paused_when_the_pause_came_while_it_was_starting(
    connection: Connection, pipeline: str
) -> None:
    """It was not among those that were called; what stands in the broker tells it, then and later."""
    spec = one_stage(pipeline, "broker")
    pause_states = PauseStates(connection, pipeline)
    async with Fleet(connection, spec) as fleet:
        replica = await fleet.start("up")
        await pause_states.place([0], PauseState())
        await eventually(lambda: replica.record.status == "draining")
        await pause_states.lift([0])
        await eventually(lambda: replica.record.status == "up")


async def test_newcomer_sleeps_while_its_stage_is_asleep(connection: Connection, pipeline: str) -> None:
    spec = PipelineSpec(name=pipeline, heartbeat_timeout=1.0, stages=(callable_stage(),))
    controls = Controls(connection, spec)
    async with Fleet(connection, spec) as fleet:
        await fleet.start("up")
        await controls.sleep()
        await fleet.start("draining")

        async def all_asleep() -> bool:
            return await controls.is_sleeping()

        await eventually(all_asleep)
        await controls.pause_generation()
        with pytest.raises(InvalidRequest, match="asleep"):
            await controls.resume_generation()
        assert list(await controls.collective_rpc("naps")) == [True, True]
        await controls.wake_up()
        assert not await controls.is_sleeping()
        assert not await controls.is_paused()
        await fleet.start("up")


async def test_replica_leaves_when_its_engine_is_still_falling_asleep(connection: Connection, pipeline: str) -> None:
    stage = callable_stage(model="tests.support.callable_stage:Sleepless")
    spec = PipelineSpec(name=pipeline, heartbeat_timeout=1.0, stages=(stage,))
    async with Fleet(connection, spec) as fleet:
        replica = await fleet.start("up")
        await PauseStates(connection, pipeline).place([0], PauseState(asleep=True))
        await eventually(lambda: replica._engine._call.tries, what="the engine tries to sleep")
        await fleet.leave(replica)
        assert replica.record.status == "down"


async def test_no_pause_is_left_when_a_sleep_was_refused(connection: Connection, pipeline: str) -> None:
    spec = one_stage(pipeline, "broker")
    controls = Controls(connection, spec)
    async with Fleet(connection, spec) as fleet:
        replica = await fleet.start("up")
        with pytest.raises(InvalidRequest):
            await controls.pause_generation("no such mode")
        with pytest.raises(InvalidRequest, match="cannot sleep"):
            await controls.sleep()
        await eventually(lambda: replica.record.status == "up")
        await fleet.start("up")


async def test_status_says_that_a_stage_is_paused_when_everything_was_restarted(
    connection: Connection, pipeline: str
) -> None:
    spec = one_stage(pipeline, "broker")
    await deploy_pipeline(connection, spec)
    async with Fleet(connection, spec) as fleet:
        await fleet.start("up")
        await Controls(connection, spec).pause_generation()
    async with Fleet(connection, spec) as fleet:
        await fleet.start("draining")
        asking = ("status", "--pipeline", pipeline)
        table = await asyncio.to_thread(omnibus, *asking, nats=connection.url)
        said = json.loads((await asyncio.to_thread(omnibus, *asking, "--json", nats=connection.url)).stdout)
    assert "stage s0 is paused" in table.stdout
    stage = said["stages"][0]
    assert (stage["pause"], stage["replicas"][0]["paused"]) == ("paused", True)
    assert pipeline in {found.spec.name for found in await list_deployed(connection)}, "and no other is made of it"
