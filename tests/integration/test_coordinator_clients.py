"""Coordinator: `OmniCoordClientForStage` and `OmniCoordClientForHub`, with the contracts that users know."""

from __future__ import annotations

import pytest

from omnibus.broker.connection import Connection
from omnibus.registry.presence.coordinator import OmniCoordClientForHub, OmniCoordClientForStage
from omnibus.registry.presence.replica_info import ReplicaEvent, ReplicaEventType
from omnibus.registry.presence.replica_record import ReplicaStatus
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
            await eventually(lambda: [one.status for one in hub.get_replica_list().replicas] == ["error"])
            await client.update_info(status=ReplicaStatus.UP, queue_length=2)
            await eventually(lambda: [one.status for one in hub.get_replica_list().replicas] == ["up"])
            assert hub.get_replica_list().replicas[0].queue_length == 2
            assert hub.get_replicas_for_stage(0).replicas == []
        await eventually(lambda: [one.status for one in hub.get_replica_list().replicas] == ["down"])


async def test_queue_length_is_asked_at_every_beat(connection: Connection, pipeline: str) -> None:
    await lay_out(connection, pipeline, heartbeat_timeout=1.0)
    lengths = iter(range(1, 100))
    seen: list[int] = []

    def on_message(event: ReplicaEvent) -> None:
        seen.append(event.replica.queue_length)

    async with (
        OmniCoordClientForHub(connection, pipeline, heartbeat_timeout=1.0, on_event=on_message),
        OmniCoordClientForStage(connection, pipeline, 0, heartbeat_timeout=1.0, queue_length=lambda: next(lengths)),
    ):
        await eventually(lambda: len(seen) >= 4)
        assert seen == sorted(set(seen)), "another one each time"


async def test_hub_tells_of_all_news(connection: Connection, pipeline: str) -> None:
    await lay_out(connection, pipeline)
    events: list[ReplicaEvent] = []
    async with OmniCoordClientForHub(connection, pipeline, on_event=events.append):
        async with OmniCoordClientForStage(connection, pipeline, 0) as client:
            await eventually(lambda: len(events) == 1)  # between two beats: news of one replica may be put together
            await client.update_info(queue_length=1)
            await eventually(lambda: len(events) == 2)
            await client.update_info(status=ReplicaStatus.DRAINING)
            await eventually(lambda: len(events) == 3)
        await eventually(lambda: len(events) == 4)
    kinds = [ReplicaEventType.JOINED, ReplicaEventType.HEARTBEAT, ReplicaEventType.UPDATE, ReplicaEventType.UPDATE]
    assert [event.event_type for event in events] == kinds
    assert [event.replica.status for event in events] == ["up", "up", "draining", "down"]


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
