"""Key-value buckets: compare-and-set, lifetimes, markers; and the watch that heals itself."""

from __future__ import annotations

import asyncio

import pytest

from omnibus.broker import bucket as bucket_module
from omnibus.broker.bucket import MOST_AT_ONCE, Bucket
from omnibus.broker.connection import Connection, PubAck, Publishing, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.replies import Transient
from omnibus.broker.watch import Watch
from omnibus.errors import BrokerUnavailable, RevisionConflict
from omnibus.wire import stores, subjects
from tests.support.broker import lay_out
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


@pytest.fixture
async def ledger(connection: Connection, pipeline: str) -> Bucket:
    await lay_out(connection, pipeline)
    return Bucket(connection, stores.requests_bucket(pipeline))


async def test_value_is_read_back_when_created_updated_and_put(ledger: Bucket) -> None:
    assert await ledger.get("r") is None
    first = await ledger.create("r", b"one")
    second = await ledger.update("r", b"two", first)
    entry = await ledger.get("r")
    assert entry is not None
    assert (entry.value, entry.revision) == (b"two", second)
    assert await ledger.put("r", b"three") > second
    assert await ledger.keys() == ["r"]


async def test_empty_value_is_a_value_when_stored(ledger: Bucket) -> None:
    await ledger.create("r", b"")
    entry = await ledger.get("r")
    assert entry is not None
    assert entry.value == b""


async def test_second_writer_loses_when_both_name_the_same_revision(ledger: Bucket) -> None:
    revision = await ledger.create("r", b"one")
    with pytest.raises(RevisionConflict):
        await ledger.create("r", b"other")
    await ledger.update("r", b"two", revision)
    with pytest.raises(RevisionConflict):
        await ledger.update("r", b"late", revision)
    with pytest.raises(RevisionConflict):
        await ledger.delete("r", revision)


async def test_exactly_one_wins_when_many_write_at_once(ledger: Bucket) -> None:
    revision = await ledger.create("r", b"open")
    writes = (ledger.update("r", f"end {number}".encode(), revision) for number in range(20))
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert sum(isinstance(result, int) for result in results) == 1
    assert sum(isinstance(result, RevisionConflict) for result in results) == 19


async def test_key_is_absent_and_can_be_created_again_when_deleted(ledger: Bucket) -> None:
    await ledger.create("r", b"one")
    await ledger.delete("r")
    assert await ledger.get("r") is None
    await ledger.create("r", b"again")
    entry = await ledger.get("r")
    assert entry is not None
    assert entry.value == b"again"


async def test_update_with_a_lifetime_expires_when_its_time_is_over(ledger: Bucket) -> None:
    revision = await ledger.create("r", b"open")
    await ledger.update("r", b"done", revision, ttl=0.5)  # rounded up to a second
    assert (await ledger.get("r")) is not None
    await eventually(lambda: _is_absent(ledger, "r"), 4)


async def test_key_can_be_created_when_its_expiry_left_a_marker(connection: Connection, pipeline: str) -> None:
    await lay_out(connection, pipeline, heartbeat_timeout=1.0)
    replicas = Bucket(connection, stores.replicas_bucket(pipeline))
    await replicas.create("0.a", b"up")
    await eventually(lambda: _is_absent(replicas, "0.a"), 4)
    assert await replicas.keys() == ["0.a"]  # the marker
    await replicas.create("0.a", b"up again")


async def test_own_write_is_recognised_when_its_acknowledgement_was_lost(
    ledger: Bucket, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Publishing._attempt
    lost = 0

    async def lose_the_first_answer(publishing: Publishing) -> PubAck:
        nonlocal lost
        ack = await attempt(publishing)
        if lost == 0:
            lost += 1
            raise Transient("lost on the way")
        return ack

    monkeypatch.setattr(Publishing, "_attempt", lose_the_first_answer)
    revision = await ledger.create("r", b"with my nonce")
    assert lost == 1
    lost = 0
    revision = await ledger.update("r", b"and again", revision)
    entry = await ledger.get("r")
    assert entry is not None
    assert (entry.value, entry.revision) == (b"and again", revision)


async def test_reading_says_so_when_the_broker_is_gone(own_server: EmbeddedServer, pipeline: str) -> None:
    async with connect(own_server.url, name="test") as connection:
        await lay_out(connection, pipeline)
        await own_server.kill()
        with pytest.raises(BrokerUnavailable):
            await connection.retried_request("$JS.API.INFO", deadline=0.3)
        with pytest.raises(BrokerUnavailable):
            await connection.js_publish(subjects.timer(pipeline, "n", "r"), deadline=0.3)


async def test_watch_tells_every_change_when_keys_come_change_and_go(ledger: Bucket, connection: Connection) -> None:
    told: list[tuple[str, bytes | None]] = []
    await ledger.put("before", b"0")
    async with Watch(connection, ledger.name, lambda key, value, _: told.append((key, value))) as watch:
        assert {key: entry.value for key, entry in watch.snapshot.items()} == {"before": b"0"}
        await ledger.put("a", b"1")
        await ledger.put("a", b"2")
        await ledger.delete("a")
        await eventually(lambda: told[-1] == ("a", None))
    assert told == [("before", b"0"), ("a", b"1"), ("a", b"2"), ("a", None)]


async def test_watch_is_synced_when_the_bucket_is_empty(ledger: Bucket, connection: Connection) -> None:
    async with Watch(connection, ledger.name) as watch:
        assert watch.synced
        assert dict(watch.snapshot) == {}


async def test_watch_reports_expiry_when_a_replica_stops_beating(connection: Connection, pipeline: str) -> None:
    await lay_out(connection, pipeline, heartbeat_timeout=1.0)
    replicas = Bucket(connection, stores.replicas_bucket(pipeline))
    async with Watch(connection, replicas.name) as watch:
        await replicas.put("0.a", b"up")
        await eventually(lambda: "0.a" in watch.snapshot)
        await eventually(lambda: "0.a" not in watch.snapshot, 4)


async def test_watch_resyncs_soon_when_the_server_was_killed(own_server: EmbeddedServer, pipeline: str) -> None:
    async with connect(own_server.url, name="watcher") as connection, connect(own_server.url, name="writer") as writer:
        await lay_out(writer, pipeline)
        ledger = Bucket(writer, stores.requests_bucket(pipeline))
        for key in ("kept", "changed", "gone"):
            await ledger.put(key, b"1")
        told: list[tuple[str, bytes | None]] = []
        async with Watch(connection, ledger.name, lambda key, value, _: told.append((key, value))) as watch:
            told.clear()
            await own_server.kill()
            await eventually(lambda: not watch.synced)
            await own_server.start()
            await writer.wait_connected(5)
            await ledger.put("changed", b"2")
            await ledger.delete("gone")
            await ledger.put("new", b"1")
            await eventually(lambda: sorted(told, key=str) == _CHANGES, 5)
            await watch.wait_synced(5)
            assert sorted(watch.snapshot) == ["changed", "kept", "new"]


_CHANGES: list[tuple[str, bytes | None]] = [("changed", b"2"), ("gone", None), ("new", b"1")]


async def test_watch_starts_over_when_its_consumer_is_gone(
    ledger: Bucket, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnibus.broker.watch.HEARTBEAT", 0.2)
    stream = f"KV_{ledger.name}"
    async with Watch(connection, ledger.name) as watch:
        (consumer,) = (await connection.api(f"CONSUMER.NAMES.{stream}"))["consumers"]
        await connection.api(f"CONSUMER.DELETE.{stream}.{consumer}")
        await ledger.put("a", b"1")
        await eventually(lambda: "a" in watch.snapshot, 4)


async def test_watch_removes_what_a_resync_does_not_find(ledger: Bucket, connection: Connection) -> None:
    told: list[tuple[str, bytes | None]] = []
    await ledger.put("a", b"1")
    async with Watch(connection, ledger.name, lambda key, value, _: told.append((key, value))) as watch:
        watch._entries["ghost"] = bucket_module.BucketEntry(
            "ghost", b"0", 999
        )  # deleted while nobody watched, marker and all
        watch._start_over()
        await eventually(lambda: ("ghost", None) in told)
        assert told == [("a", b"1"), ("ghost", None)]


async def _is_absent(bucket: Bucket, key: str) -> bool:
    return await bucket.get(key) is None


async def test_many_keys_are_read_at_once_and_those_without_a_value_left_out(ledger: Bucket) -> None:
    assert await ledger.get_all(["nothing", "there"]) == {}
    names = [f"k{number}" for number in range(2 * MOST_AT_ONCE)]
    for name in names:
        await ledger.create(name, name.encode())
    await ledger.delete("k7")
    found = await ledger.get_all([*names, "missing"])
    assert found == {name: name.encode() for name in names if name != "k7"}
