"""The work queue of a request: timers, purges, deduplication; and stored payloads."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.objects import ObjectStore
from omnibus.broker.puller import Puller
from omnibus.errors import BrokerRefused, PayloadLost
from omnibus.ledger.work_queue import WorkQueue
from omnibus.wire import stores, subjects
from tests.support.broker import lay_out, publish_tasks, queued, stage_puller, take_all

pytestmark = pytest.mark.integration


def _events(connection: Connection, pipeline: str) -> Puller:
    return Puller(connection, stores.work_stream(pipeline), [stores.EVENTS_CONSUMER])


async def test_timer_fires_as_a_deadline_event_when_its_time_comes(connection: Connection, pipeline: str) -> None:
    await lay_out(connection, pipeline)
    work = WorkQueue(connection, pipeline)
    due = time.time() + 0.4
    await work.schedule_deadline("r", "n", due, b"run 0")
    async with _events(connection, pipeline) as events:
        events.add_credit()
        fired = await asyncio.wait_for(events.take(), 5)
        assert time.time() >= due - 0.01
        assert subjects.parse_event(fired.subject) == subjects.EventSubject(
            pipeline, None, subjects.EventKind.DEADLINE, "r"
        )
        assert fired.data == b"run 0"
        await fired.ack()
    assert await queued(connection, pipeline) == 0


async def test_timer_fires_at_once_when_its_time_is_past(connection: Connection, pipeline: str) -> None:
    await lay_out(connection, pipeline)
    await WorkQueue(connection, pipeline).schedule_deadline("r", "n", time.time() - 100)
    async with _events(connection, pipeline) as events:
        events.add_credit()
        await asyncio.wait_for(events.take(), 3)


async def test_timer_is_replaced_when_scheduled_again_and_gone_when_cancelled(
    connection: Connection, pipeline: str
) -> None:
    await lay_out(connection, pipeline)
    work = WorkQueue(connection, pipeline)
    await work.schedule_deadline("again", "n", time.time() + 0.2, b"old")
    await work.schedule_deadline("again", "n", time.time() + 0.5, b"new")
    await work.schedule_deadline("cancelled", "n", time.time() + 0.2)
    work.cancel_deadline("cancelled", "n")
    await work.schedule_deadline("last", "n", time.time() + 0.9)
    async with _events(connection, pipeline) as events:
        events.add_credit(5)
        first, second = [await asyncio.wait_for(events.take(), 5) for _ in range(2)]
    assert (first.data, subjects.parse_rid(second.subject)) == (b"new", "last")


async def test_timers_survive_when_the_server_is_killed(own_server: EmbeddedServer, pipeline: str) -> None:
    async with connect(own_server.url, name="test") as connection:
        await lay_out(connection, pipeline)
        work = WorkQueue(connection, pipeline)
        for number in range(10):
            await work.schedule_deadline(f"r{number}", "n", time.time() + 1.0)
        await own_server.kill()
        await own_server.start()
        async with _events(connection, pipeline) as events:
            events.add_credit(10)
            fired = [await asyncio.wait_for(events.take(), 10) for _ in range(10)]
    assert {subjects.parse_rid(delivery.subject) for delivery in fired} == {f"r{number}" for number in range(10)}


async def test_purge_removes_everything_of_one_request_and_nothing_else(connection: Connection, pipeline: str) -> None:
    lanes = ("interactive", "batch", "replica-1")
    await lay_out(connection, pipeline, {0: lanes, 3: lanes})
    work = WorkQueue(connection, pipeline)
    for rid in ("mine", "other"):
        for stage in (0, 3):
            for lane in lanes:
                await publish_tasks(connection, pipeline, [rid], lane, stage)
                dedupe = f"{rid}.{stage}.{lane}"  # the same id on several lanes would be taken for a duplicate
                await connection.js_publish(subjects.task(pipeline, stage, lane, rid), b"x", dedupe)
        for kind in subjects.EventKind:
            await connection.js_publish(subjects.event(pipeline, 3, kind, rid), b"x")
        await work.schedule_deadline(rid, "n", time.time() + 60)
    async with stage_puller(connection, pipeline, lanes) as puller:
        puller.add_credit()
        await puller.take()  # one of them is in flight
        await work.purge("mine")
    assert not await work.anything_queued("mine")
    assert await work.anything_queued("other")
    info = await connection.api(f"STREAM.INFO.{stores.work_stream(pipeline)}", {"subjects_filter": ">"})
    assert {subjects.parse_rid(subject) for subject in info["state"]["subjects"]} == {"other"}
    await work.purge("mine")  # twice is once


async def test_anything_queued_counts_what_is_in_flight_but_not_the_timer(
    connection: Connection, pipeline: str
) -> None:
    await lay_out(connection, pipeline)
    work = WorkQueue(connection, pipeline)
    await work.schedule_deadline("r", "n", time.time() + 60)
    assert not await work.anything_queued("r")
    await publish_tasks(connection, pipeline, ["r"])
    async with stage_puller(connection, pipeline) as puller:
        puller.add_credit()
        delivery = await puller.take()
        assert await work.anything_queued("r")
        assert (await work.depths())["stage-0-interactive"].total == 1
        await delivery.ack()
        await connection.flush()
    assert not await work.anything_queued("r")


async def test_depths_are_of_every_lane_when_there_are_more_than_the_server_lists_at_once(
    connection: Connection, pipeline: str
) -> None:
    await lay_out(connection, pipeline)
    stream, lanes = stores.work_stream(pipeline), [f"r{number}" for number in range(300)]
    for lane in lanes:
        name, filtered = stores.stage_consumer(0, lane), subjects.tasks_filter(pipeline, 0, lane)
        config = {"durable_name": name, "name": name, "ack_policy": "explicit", "filter_subject": filtered}
        await connection.api(f"CONSUMER.CREATE.{stream}.{name}.{filtered}", {"stream_name": stream, "config": config})
    found = await WorkQueue(connection, pipeline).depths()
    assert {stores.stage_consumer(0, lane) for lane in lanes} <= found.keys()


async def test_message_is_stored_once_when_published_twice_with_one_id(connection: Connection, pipeline: str) -> None:
    await lay_out(connection, pipeline)
    subject, msg_id = subjects.task(pipeline, 0, "interactive", "r"), subjects.message_id("task", "r", 0, 0)
    first = await connection.js_publish(subject, b"x", msg_id)
    second = await connection.js_publish(subject, b"x", msg_id)
    assert (first.duplicate, second.duplicate, second.seq) == (False, True, first.seq)
    again = await connection.js_publish(subject, b"x", subjects.message_id("task", "r", 0, 1))
    assert not again.duplicate  # another run is another message


async def test_retries_store_one_message_when_the_server_is_killed_meanwhile(
    own_server: EmbeddedServer, pipeline: str
) -> None:
    async with connect(own_server.url, name="test") as connection:
        await lay_out(connection, pipeline)
        await own_server.kill()
        publishing = asyncio.create_task(publish_tasks(connection, pipeline, ["r"]))
        await own_server.start()
        await asyncio.wait_for(publishing, 5)
        assert await queued(connection, pipeline) == 1


async def test_publish_is_refused_clearly_when_the_message_is_too_large(connection: Connection, pipeline: str) -> None:
    await lay_out(connection, pipeline)
    with pytest.raises(BrokerRefused, match="exceeds the server's"):
        await connection.js_publish(subjects.task(pipeline, 0, "interactive", "r"), bytes(connection.max_payload + 1))


@pytest.mark.parametrize("size", [0, 1, 128 * 1024, 128 * 1024 + 1, 5_000_000])
async def test_object_is_read_back_when_stored(connection: Connection, pipeline: str, size: int) -> None:
    await lay_out(connection, pipeline)
    store = ObjectStore(connection, stores.payloads_bucket(pipeline))
    data = os.urandom(size)
    await store.put("r/image", data)
    assert await store.get("r/image") == data
    await store.put("r/image", b"replaced")
    assert await store.get("r/image") == b"replaced"
    await store.delete("r/image")
    await store.delete("r/image")
    with pytest.raises(PayloadLost):
        await store.get("r/image")
    info = await connection.api(f"STREAM.INFO.OBJ_{stores.payloads_bucket(pipeline)}")
    assert info["state"]["messages"] == 0


async def test_large_object_is_read_in_linear_time_when_it_takes_several_batches(
    connection: Connection, pipeline: str
) -> None:
    await lay_out(connection, pipeline)
    store = ObjectStore(connection, stores.payloads_bucket(pipeline))
    data = os.urandom(1 << 20) * 40
    await store.put("big", data)
    started = time.monotonic()
    assert await store.get("big") == data
    assert time.monotonic() - started < 5.0  # about 0.1 s on a quiet machine; the client library takes seconds


async def test_object_is_read_when_the_server_is_killed_meanwhile(own_server: EmbeddedServer, pipeline: str) -> None:
    async with connect(own_server.url, name="test") as connection:
        await lay_out(connection, pipeline)
        store = ObjectStore(connection, stores.payloads_bucket(pipeline))
        data = os.urandom(1 << 20) * 40
        await store.put("big", data)
        reading = asyncio.create_task(store.get("big"))
        await asyncio.sleep(0.01)  # somewhere in its three batches
        await own_server.kill()
        await own_server.start()
        assert await reading == data


async def test_damaged_object_is_refused_when_a_chunk_is_missing(connection: Connection, pipeline: str) -> None:
    await lay_out(connection, pipeline)
    store = ObjectStore(connection, stores.payloads_bucket(pipeline))
    await store.put("r", os.urandom(300_000))
    await connection.api(f"STREAM.MSG.DELETE.OBJ_{store.name}", {"seq": 2, "no_erase": True})
    with pytest.raises(PayloadLost):
        await store.get("r")


async def test_large_messages_flow_when_taken_by_credit(connection: Connection, pipeline: str) -> None:
    await lay_out(connection, pipeline)
    body = bytes(500_000)
    for rid in range(20):
        await connection.js_publish(subjects.task(pipeline, 0, "interactive", f"r{rid}"), body)
    async with stage_puller(connection, pipeline) as puller:
        puller.add_credit(20)
        async with asyncio.timeout(10):
            taken = await take_all(puller, 20)
    assert all(delivery.data == body for delivery in taken)
