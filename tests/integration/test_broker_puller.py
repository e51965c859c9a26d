"""The one puller: bounded by credit, in lane order, through restarts, losing none."""

from __future__ import annotations

import asyncio
import time

import pytest
from structlog.testing import capture_logs

from omnibus.broker.connection import Connection, connect
from omnibus.broker.delivery import Delivery
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.layout import ensure_layout
from omnibus.broker.puller import Puller
from omnibus.wire import stores, subjects
from tests.support.broker import describe, lay_out, publish_tasks, queued, stage_puller, take_all
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


def _ids(count: int, prefix: str = "r") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


async def test_messages_arrive_once_and_in_order_when_taken_one_at_a_time(
    connection: Connection, pipeline: str
) -> None:
    await lay_out(connection, pipeline)
    await publish_tasks(connection, pipeline, _ids(50))
    async with stage_puller(connection, pipeline) as puller:
        puller.add_credit()
        taken = [await asyncio.wait_for(puller.take(), 2) for _ in range(1)]
        await taken[0].ack()
        puller.add_credit()
        rest = await take_all(puller, 49)
    assert [delivery.data.decode() for delivery in (*taken, *rest)] == _ids(50)
    assert {delivery.num_delivered for delivery in rest} == {1}
    await eventually(lambda: _is_empty(connection, pipeline))


async def test_nothing_arrives_when_there_is_no_credit(connection: Connection, pipeline: str) -> None:
    await lay_out(connection, pipeline)
    await publish_tasks(connection, pipeline, _ids(5))
    async with stage_puller(connection, pipeline) as puller:
        puller.add_credit(2)
        first, second = [await puller.take() for _ in range(2)]
        assert (first.data, second.data, puller._credit) == (b"r0", b"r1", 0)
        info = await connection.api(f"CONSUMER.INFO.{stores.work_stream(pipeline)}.stage-0-interactive")
        assert (info["num_ack_pending"], info["num_pending"], info["num_waiting"]) == (2, 3, 0)


async def test_replicas_share_the_work_and_nobody_prefetches_when_one_is_slow(
    connection: Connection, pipeline: str
) -> None:
    await lay_out(connection, pipeline)
    async with stage_puller(connection, pipeline) as slow, stage_puller(connection, pipeline) as quick:
        slow.add_credit()
        quick.add_credit()
        await publish_tasks(connection, pipeline, _ids(20))
        held = await slow.take()
        assert len(await take_all(quick, 19)) == 19
        await held.ack()
    await eventually(lambda: _is_empty(connection, pipeline))


async def test_lanes_are_served_in_order_and_batch_every_eighth_time_when_all_have_work(
    connection: Connection, pipeline: str
) -> None:
    lanes = ("interactive", "batch")
    await lay_out(connection, pipeline, {0: lanes})
    await publish_tasks(connection, pipeline, _ids(20, "b"), "batch")
    await publish_tasks(connection, pipeline, _ids(20, "i"))
    async with stage_puller(connection, pipeline, lanes) as puller:
        puller.add_credit()
        order = "".join(delivery.data.decode()[0] for delivery in await take_all(puller, 40))
    assert order[:16] == "iiiiiiibiiiiiiib"
    assert order.count("b") == order.count("i") == 20


async def test_excess_is_requeued_and_not_counted_as_an_attempt_when_lanes_deliver_at_once(
    connection: Connection, pipeline: str
) -> None:
    lanes = ("interactive", "batch")
    await lay_out(connection, pipeline, {0: lanes})
    async with stage_puller(connection, pipeline, lanes) as parked:
        parked.add_credit()
        await _parked(connection, pipeline, lanes)
        await asyncio.gather(
            publish_tasks(connection, pipeline, ["one"]), publish_tasks(connection, pipeline, ["two"], "batch")
        )
        first = await parked.take()
        async with stage_puller(connection, pipeline, lanes) as other:
            other.add_credit()
            second = await asyncio.wait_for(other.take(), 2)
        assert {first.data, second.data} == {b"one", b"two"}
        assert (first.num_delivered, second.num_delivered) == (1, 1)
        await first.ack()
        await second.ack()
    await eventually(lambda: _is_empty(connection, pipeline))


async def test_requeued_message_is_stored_again_when_its_id_is_known(connection: Connection, pipeline: str) -> None:
    await lay_out(connection, pipeline)
    await publish_tasks(connection, pipeline, ["r"])
    async with stage_puller(connection, pipeline) as puller:
        for _ in range(3):
            puller.add_credit()
            delivery = await asyncio.wait_for(puller.take(), 2)
            assert delivery.num_delivered == 1
            await delivery.requeue()
    assert await queued(connection, pipeline) == 1


async def test_server_has_copy_and_acknowledgement_when_a_requeue_returns(
    nats_server: EmbeddedServer, connection: Connection, pipeline: str
) -> None:
    """Its connection breaks in the next instruction: what the client still had in its buffers would be lost."""
    await lay_out(connection, pipeline)
    await publish_tasks(connection, pipeline, ["r"])
    async with (
        connect(nats_server.url, name="leaving", role="test") as leaving,
        stage_puller(leaving, pipeline) as puller,
    ):
        puller.add_credit()
        delivery = await asyncio.wait_for(puller.take(), 2)
        await delivery.requeue()
        leaving.client._batch.clear()
        leaving.client._transport.out.abort()
        stream = stores.work_stream(pipeline)
        info = await connection.api(f"CONSUMER.INFO.{stream}.{delivery.consumer}")
        assert (await queued(connection, pipeline), info["num_ack_pending"]) == (1, 0)


async def test_requeue_acknowledges_again_when_the_connection_breaks_after_its_copy_is_stored(
    nats_server: EmbeddedServer, connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lay_out(connection, pipeline)
    await publish_tasks(connection, pipeline, ["r"])
    acks: list[Delivery] = []
    async with (
        Proxy(nats_server.url) as proxy,
        connect(proxy.url, name="leaving", role="test") as leaving,
        stage_puller(leaving, pipeline) as puller,
    ):
        puller.add_credit()
        delivery = await asyncio.wait_for(puller.take(), 2)

        async def break_first(self: Delivery) -> None:
            acks.append(self)
            if len(acks) == 1:
                proxy.drop()  # with the acknowledgement in the client's buffer
            leaving.send(self.ack_subject, b"+ACK")

        monkeypatch.setattr(Delivery, "ack", break_first)
        await asyncio.wait_for(delivery.requeue(), 10)
        info = await connection.api(f"CONSUMER.INFO.{stores.work_stream(pipeline)}.{delivery.consumer}")
        assert (await queued(connection, pipeline), info["num_ack_pending"]) == (1, 0)
    assert len(acks) > 1


async def test_untaken_deliveries_are_requeued_when_the_puller_closes(connection: Connection, pipeline: str) -> None:
    await lay_out(connection, pipeline)
    await publish_tasks(connection, pipeline, _ids(3))
    async with stage_puller(connection, pipeline) as puller:
        puller.add_credit(3)
        await eventually(lambda: puller._credit == 0)
    async with stage_puller(connection, pipeline) as puller:
        puller.add_credit()
        async with asyncio.timeout(3):
            taken = await take_all(puller, 3)
    assert sorted(delivery.data for delivery in taken) == [b"r0", b"r1", b"r2"]


@pytest.mark.parametrize("lanes", [("interactive",), ("interactive", "batch")])
async def test_parked_pulls_go_on_when_the_server_was_killed_and_is_back(
    own_server: EmbeddedServer, pipeline: str, lanes: tuple[str, ...]
) -> None:
    async with connect(own_server.url, name="replica") as connection:
        await lay_out(connection, pipeline, {0: lanes})
        async with stage_puller(connection, pipeline, lanes) as puller:
            puller.add_credit(4)
            await _parked(connection, pipeline, lanes)
            await own_server.kill()
            await own_server.start()
            back = time.monotonic()
            await publish_tasks(connection, pipeline, _ids(8))
            async with asyncio.timeout(5):
                taken = await take_all(puller, 8)
            assert time.monotonic() - back < 2.0
            assert sorted(delivery.data.decode() for delivery in taken) == _ids(8)


async def test_no_message_is_lost_when_the_server_is_killed_under_load(
    own_server: EmbeddedServer, pipeline: str
) -> None:
    async with connect(own_server.url, name="replica") as connection:
        await lay_out(connection, pipeline, heartbeat_timeout=2.0)
        rids = _ids(600)
        done: set[str] = set()

        async def work(puller: Puller) -> None:
            async for delivery in puller:
                done.add(delivery.data.decode())
                await delivery.ack()
                puller.add_credit()

        async with stage_puller(connection, pipeline) as puller:
            puller.add_credit(8)
            worker = asyncio.create_task(work(puller))
            publisher = asyncio.create_task(publish_tasks(connection, pipeline, rids))
            for goal in (100, 300):
                await eventually(lambda goal=goal: len(done) >= goal, 10)
                await own_server.kill()
                await own_server.start()
            await publisher
            await eventually(lambda: len(done) == len(rids), 10)
            await eventually(lambda: _is_empty(connection, pipeline), 10)
            worker.cancel()


async def test_puller_goes_on_when_its_consumer_is_deleted_and_made_again(
    connection: Connection, pipeline: str
) -> None:
    await lay_out(connection, pipeline)
    async with stage_puller(connection, pipeline) as puller:
        puller.add_credit(2)
        await _parked(connection, pipeline, ("interactive",))
        await connection.api(f"CONSUMER.DELETE.{stores.work_stream(pipeline)}.stage-0-interactive")
        await publish_tasks(connection, pipeline, _ids(2))
        await ensure_layout(connection, describe(pipeline, {0: ("interactive",)}))
        async with asyncio.timeout(4):
            assert len(await take_all(puller, 2)) == 2


async def test_failing_lane_is_reported_once_when_it_fails_again_and_again(
    connection: Connection, pipeline: str
) -> None:
    """As that of a directed replica, whose consumer an orchestrator makes: none may run for hours."""
    await lay_out(connection, pipeline)
    await connection.api(f"CONSUMER.DELETE.{stores.work_stream(pipeline)}.stage-0-interactive")
    reissued = connection.metrics.pulls_reissued.labels(stage="stage 0")
    with capture_logs() as logged:
        async with stage_puller(connection, pipeline) as puller:
            puller.add_credit()
            await eventually(lambda: reissued._value.get() >= 4)
    levels = [entry["log_level"] for entry in logged if entry["event"] == "pull.reissued"]
    assert levels == ["info", *["debug"] * (len(levels) - 1)]
    assert len(levels) >= 4


async def test_requests_are_renewed_when_the_server_forgets_them(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnibus.broker.puller.HEARTBEAT", 0.1)
    monkeypatch.setattr("omnibus.broker.lane.HEARTBEAT", 0.1)
    endless = b'{"batch": %d, "expires": 60000000000}'  # and no heartbeats
    monkeypatch.setattr("omnibus.broker.lane._parked", lambda _seconds: endless)
    await lay_out(connection, pipeline)
    async with stage_puller(connection, pipeline) as puller:
        puller.add_credit()
        reissued = connection.metrics.pulls_reissued.labels(stage="stage 0")
        await eventually(lambda: reissued._value.get() >= 2)
        await publish_tasks(connection, pipeline, ["r"])
        assert (await asyncio.wait_for(puller.take(), 2)).data == b"r"


async def test_requests_are_renewed_when_they_expire(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parked = b'{"batch": %d, "expires": 200000000, "idle_heartbeat": 50000000}'
    monkeypatch.setattr("omnibus.broker.lane._parked", lambda _seconds: parked)
    await lay_out(connection, pipeline)
    async with stage_puller(connection, pipeline) as puller:
        puller.add_credit(3)
        lane = puller._lanes[0]
        await eventually(lambda: lane._made >= 4)
        assert lane.outstanding <= 3
        await publish_tasks(connection, pipeline, _ids(3))
        assert len(await asyncio.wait_for(take_all(puller, 3), 2)) == 3
    assert connection.metrics.pulls_reissued.labels(stage="stage 0")._value.get() == 0


async def test_many_messages_flow_when_throughput_counts(connection: Connection, pipeline: str) -> None:
    await lay_out(connection, pipeline)
    events = [subjects.event(pipeline, 0, "result", rid) for rid in _ids(2000)]
    await asyncio.gather(*(connection.js_publish(subject, b"x") for subject in events))
    stream = stores.work_stream(pipeline)
    started = time.monotonic()
    async with Puller(connection, stream, [stores.EVENTS_CONSUMER], step=64) as puller:
        puller.add_credit(256)
        taken = await take_all(puller, 2000)
    assert len({delivery.stream_seq for delivery in taken}) == 2000
    assert time.monotonic() - started < 5.0  # about 0.15 s on a quiet machine


async def _parked(connection: Connection, pipeline: str, lanes: tuple[str, ...]) -> None:
    """Wait until pulls wait on every lane."""

    async def all_wait() -> bool:
        stream = stores.work_stream(pipeline)
        infos = [await connection.api(f"CONSUMER.INFO.{stream}.stage-0-{lane}") for lane in lanes]
        return all(info["num_waiting"] > 0 for info in infos)

    await eventually(all_wait)


async def _is_empty(connection: Connection, pipeline: str) -> bool:
    return await queued(connection, pipeline) == 0
