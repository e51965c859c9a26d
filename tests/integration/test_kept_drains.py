"""A drain of one replica is kept: it holds for the replica that is started in its place, and for no other."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from omnibus.broker.connection import Connection
from omnibus.client.controls import Controls
from omnibus.client.draining import chosen, drain_replica, end_replica, resume_replica
from omnibus.client.producer import Producer
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.presence.replica_record import ReplicaRecord, read_replicas
from omnibus.requests.state import RequestState
from omnibus.workers.replica import Replica
from tests.integration.test_pause_state import HELLO, Fleet
from tests.support.directed import one_stage, orchestrator

pytestmark = pytest.mark.integration


def life(process: str) -> str:
    """The name of one life of a worker's process."""
    return f"{process}-{secrets.token_hex(4)}"


async def record_of(connection: Connection, spec: PipelineSpec, replica: Replica) -> ReplicaRecord:
    (found,) = chosen(spec, await read_replicas(connection, spec.name), [f"0.{replica.record.replica}"])
    return found


async def drain(connection: Connection, spec: PipelineSpec, replica: Replica) -> None:
    await drain_replica(connection, spec, await record_of(connection, spec, replica), timeout=10.0)


async def test_next_life_is_drained_and_others_are_not(connection: Connection, pipeline: str) -> None:
    spec = one_stage(pipeline, "broker")
    async with Fleet(connection, spec) as fleet, orchestrator(connection, spec), Producer(connection) as producer:
        first = await fleet.start("up", instance=life("dit.0"))
        await drain(connection, spec, first)
        assert (first.record.status, first.record.paused) == ("draining", True)
        await fleet.leave(first)
        other = await fleet.start("up", instance=life("dit.1"))
        assert other.record.replica == "r0", "it has the id of the drained one, and is not in its place"
        again = await fleet.start("draining", instance=life("dit.0"))
        await fleet.leave(again)
        again = await fleet.start("draining", instance=life("dit.0"))
        assert again.record.paused
        assert again.record.ready, "a rolling restart goes on behind it"
        assert (await (await producer.submit(spec, HELLO)).result()).state is RequestState.DONE
        await fleet.leave(other)
        waiting = await producer.submit(spec, HELLO)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await waiting.result()
        await resume_replica(connection, spec, await record_of(connection, spec, again))
        assert (await waiting.result()).state is RequestState.DONE
        await fleet.leave(again)
        await fleet.start("up", instance=life("dit.0"))


@pytest.mark.parametrize("undo", ["resume", "wake up", "end"])
async def test_order_is_gone_when_its_stage_is_resumed_or_its_replica_ended(
    connection: Connection, pipeline: str, undo: str
) -> None:
    spec = one_stage(pipeline, "broker")
    controls = Controls(connection, spec)
    async with Fleet(connection, spec) as fleet:
        first = await fleet.start("up", instance=life("dit.0"))
        await drain(connection, spec, first)
        match undo:
            case "resume":
                await controls.resume_generation()
            case "wake up":
                await controls.wake_up()
            case _:
                await end_replica(connection, spec, await record_of(connection, spec, first), timeout=10.0)
        if undo != "end":
            assert first.record.status == "up"
        await fleet.leave(first)
        await fleet.start("up", instance=life("dit.0"))


async def test_drained_replica_of_a_paused_stage_takes_tasks_when_that_is_resumed(
    connection: Connection, pipeline: str
) -> None:
    spec = one_stage(pipeline, "broker")
    controls = Controls(connection, spec)
    async with Fleet(connection, spec) as fleet, orchestrator(connection, spec), Producer(connection) as producer:
        first = await fleet.start("up", instance=life("dit.0"))
        await drain(connection, spec, first)
        await controls.pause_generation()
        await fleet.leave(first)
        await fleet.start("draining", instance=life("dit.0"))
        waiting = await producer.submit(spec, HELLO)
        await controls.resume_generation()
        assert (await waiting.result()).state is RequestState.DONE
