"""Coordinator: `OmniCoordClientForStage` and `OmniCoordClientForHub`, with the contracts that users know."""

from __future__ import annotations

import pytest

from omnibus.broker.connection import Connection
from omnibus.registry.presence.coordinator import OmniCoordClientForHub, OmniCoordClientForStage
from omnibus.registry.presence.replica_record import ReplicaStatus
from omnibus.registry.presence.replica_view import ReplicaView
from tests.support.broker import lay_out
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


async def test_stage_client_registers_updates_and_says_down(connection: Connection, pipeline: str) -> None:
    await lay_out(connection, pipeline)
    async with OmniCoordClientForHub(connection, pipeline) as hub:
        client = OmniCoordClientForStage(connection, pipeline, 1)
        async with client:
            assert (client.info.stage_id, client.info.replica, client.info.status) == (1, "r0", "up")
            await eventually(lambda: hub.get_replicas_for_stage(1).replicas == [client.info])
            await client.update_info(queue_length=5)
            await eventually(lambda: [one.queue_length for one in hub.get_replica_list().replicas] == [5])
            await client.update_info(status=ReplicaStatus.ERROR)
            await eventually(lambda: hub.get_replica_list().replicas == [], what="the hub lists those that are up")
            await client.update_info(status=ReplicaStatus.UP, queue_length=2)
            await eventually(lambda: [one.queue_length for one in hub.get_replica_list().replicas] == [2])
            assert hub.get_replicas_for_stage(0).replicas == []
        await eventually(lambda: hub.get_replica_list().replicas == [], what="it has said down")


async def test_updates_are_one_write_when_they_come_faster_than_they_are_written(
    connection: Connection, pipeline: str
) -> None:
    await lay_out(connection, pipeline)
    async with (
        ReplicaView(connection, pipeline, timeout=10.0) as view,
        OmniCoordClientForStage(connection, pipeline, 0) as client,
    ):
        await eventually(view.replicas)
        seen: list[int] = []
        view.on_change(lambda change: seen.append(change.after.queue_length if change.after else -1))
        for length in range(1, 201):
            await client.update_info(queue_length=length)
        await eventually(lambda: seen and seen[-1] == 200)
        assert len(seen) < 10


async def test_misuse_is_refused_when_nothing_is_updated_or_the_client_is_closed(
    connection: Connection, pipeline: str
) -> None:
    await lay_out(connection, pipeline)
    async with OmniCoordClientForStage(connection, pipeline, 0) as client:
        with pytest.raises(ValueError, match="status or a queue length"):
            await client.update_info()
        await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await client.close()
        with pytest.raises(RuntimeError, match="closed"):
            await client.update_info(queue_length=1)
