"""Replicas in the coordinator: ids, heartbeats, verdicts, and what observers make of silence."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.registry.death.claim_book import ClaimBook
from omnibus.registry.death.failure_detector import FailureDetector
from omnibus.registry.presence.heartbeat import Registration
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from omnibus.registry.presence.replica_view import ReplicaChange, ReplicaView
from omnibus.wire import codec, stores, subjects
from omnibus.wire.control import Claim
from tests.support.proxy import Proxy
from tests.support.stage_bench import HEARTBEAT_TIMEOUT, StageBench, stage_bench
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


class Registered:
    """One registration, and what it told."""

    def __init__(self, bench: StageBench, instance: str) -> None:
        self.ids: list[str] = []
        self.fenced = 0
        self.load: dict[str, Any] = {}
        self.registration = Registration(
            Bucket(bench.conn, stores.replicas_bucket(bench.spec.name)),
            ReplicaRecord(stage_id=0, replica="", instance=instance),
            timeout=HEARTBEAT_TIMEOUT,
            load=lambda: self.load,
            on_registered=self._registered,
            on_fenced=self._fenced,
        )

    async def _registered(self, replica: str) -> None:
        self.ids.append(replica)

    def _fenced(self) -> None:
        self.fenced += 1


@asynccontextmanager
async def registered(bench: StageBench, instance: str) -> AsyncIterator[Registered]:
    made = Registered(bench, instance)
    async with made.registration:
        yield made


def view_of(bench: StageBench) -> ReplicaView:
    return ReplicaView(bench.conn, bench.spec.name, timeout=HEARTBEAT_TIMEOUT)


def statuses(view: ReplicaView) -> dict[str, str]:
    return {record.replica: record.status.value for record in view.replicas()}


def gone(changes: list[ReplicaChange]) -> list[ReplicaChange]:
    return [change for change in changes if change.after is None]


async def test_ids_are_the_smallest_free_ones(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench:
        async with registered(bench, "one") as one, registered(bench, "two") as two:
            assert (one.ids, two.ids) == (["r0"], ["r1"])
        async with registered(bench, "three") as three:
            assert three.ids == ["r0"], "an id that was left is free"


async def test_no_id_is_given_twice_when_many_register_at_once(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench:
        many = [Registered(bench, f"i{number}") for number in range(20)]
        await asyncio.gather(*(one.registration.__aenter__() for one in many))
        assert sorted(one.ids[0] for one in many) == sorted(f"r{number}" for number in range(20))
        await asyncio.gather(*(one.registration.__aexit__(None, None, None) for one in many))


async def test_late_joiner_sees_everybody_at_once(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench, registered(bench, "a") as one, registered(bench, "b"):
        await one.registration.set_status(ReplicaStatus.UP)
        async with view_of(bench) as view:
            assert statuses(view) == {"r0": "up", "r1": "starting"}
            assert [record.instance for record in view.replicas(0)] == ["a", "b"]
            assert view.replicas(1) == []


async def test_heartbeat_carries_fresh_load(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench, registered(bench, "a") as one, view_of(bench) as view:
        one.load = {"queue_length": 7, "in_flight": 3}
        await view.wait_until(lambda found: found[0].queue_length == 7 and found[0].in_flight == 3, HEARTBEAT_TIMEOUT)


async def test_heart_goes_on_beating_when_the_load_is_unknown(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench, registered(bench, "a") as one, view_of(bench) as view:
        one.load = {"no_such_field": 1}
        await eventually(lambda: one.registration._metrics.errors.labels("heartbeat")._value.get() >= 2)
        one.load = {"queue_length": 7}
        # On a slow machine the record may have expired meanwhile: it comes back then.
        await view.wait_until(lambda found: any(other.queue_length == 7 for other in found), 10)


async def test_replica_learns_its_new_id_when_its_registration_was_interrupted(
    connection: Connection, pipeline: str
) -> None:
    """Its claims, orders and results must bear the id that the coordinator knows."""
    async with stage_bench(connection, pipeline) as bench, registered(bench, "a") as one:
        bucket = Bucket(connection, stores.replicas_bucket(pipeline))
        other = replace(one.registration.record, instance="other", status=ReplicaStatus.UP)
        on_message, one.registration._on_registered = one.registration._on_registered, _never
        await bucket.put(stores.replica_key(0, "r0"), codec.encode(other))
        await eventually(lambda: one.fenced)
        await eventually(lambda: one.registration.record.replica == "r1")
        one.registration._on_registered = on_message
        await eventually(lambda: one.ids == ["r0", "r1"])


async def _never(_replica: str) -> None:
    await asyncio.Event().wait()


async def test_living_replica_is_never_reported_gone_while_it_beats(connection: Connection, pipeline: str) -> None:
    changes: list[ReplicaChange] = []
    async with stage_bench(connection, pipeline) as bench, view_of(bench) as view, registered(bench, "a"):
        view.on_change(changes.append)
        await eventually(lambda: len(changes) > 2.5 * 6, 3 * HEARTBEAT_TIMEOUT + 2)
        assert gone(changes) == []


async def test_silent_replica_is_reported_gone_after_the_timeout(connection: Connection, pipeline: str) -> None:
    changes: list[ReplicaChange] = []
    async with stage_bench(connection, pipeline) as bench, view_of(bench) as view:
        view.on_change(changes.append)
        silent = Registered(bench, "a")
        await silent.registration.__aenter__()
        assert silent.registration._beating is not None
        silent.registration._beating.cancel()
        started = time.monotonic()
        await eventually(lambda: gone(changes), 3 * HEARTBEAT_TIMEOUT)
        assert time.monotonic() - started >= 0.8 * HEARTBEAT_TIMEOUT
        assert view.replicas() == []


async def test_replica_registers_afresh_when_it_was_declared_down(connection: Connection, pipeline: str) -> None:
    async with (
        stage_bench(connection, pipeline) as bench,
        view_of(bench) as view,
        ClaimBook(connection, pipeline) as claims,
        registered(bench, "a") as one,
    ):
        await one.registration.set_status(ReplicaStatus.UP)
        await view.wait_until(lambda found: len(found) == 1, 2)
        assert await FailureDetector(connection, pipeline, claims).mark_down(view.replicas()[0])
        await eventually(lambda: one.fenced)
        await eventually(lambda: statuses(view) == {"r0": "up"})
        assert one.ids == ["r0", "r0"]
        assert one.fenced == 1


async def test_replica_takes_another_id_when_its_own_was_given_away(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench, registered(bench, "a") as one:
        bucket = Bucket(connection, stores.replicas_bucket(pipeline))
        other = replace(one.registration.record, instance="other", status=ReplicaStatus.UP)
        await bucket.put(stores.replica_key(0, "r0"), codec.encode(other))
        await eventually(lambda: one.ids == ["r0", "r1"])
        assert one.fenced == 1


async def test_one_of_many_failure_detectors_marks_a_replica_down(connection: Connection, pipeline: str) -> None:
    async with (
        stage_bench(connection, pipeline) as bench,
        ClaimBook(connection, pipeline) as claims,
        registered(bench, "a") as one,
    ):
        judges = [FailureDetector(connection, pipeline, claims) for _ in range(5)]
        record = one.registration.record
        verdicts = await asyncio.gather(*(detector.mark_down(record) for detector in judges))
        assert sorted(verdicts) == [False, False, False, False, True]


async def test_marking_down_does_not_hit_a_successor(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench, ClaimBook(connection, pipeline) as claims:
        async with registered(bench, "old") as old:
            dead = replace(old.registration.record, status=ReplicaStatus.UP)
        async with registered(bench, "new") as new:
            assert new.ids == ["r0"]
            assert not await FailureDetector(connection, pipeline, claims).mark_down(dead)
            assert new.fenced == 0


async def test_dead_replicas_task_runs_elsewhere_at_once_when_it_is_marked_down(
    connection: Connection, pipeline: str
) -> None:
    async with (
        stage_bench(connection, pipeline) as bench,
        view_of(bench) as view,
        ClaimBook(connection, pipeline) as claims,
        bench.process("dying", hang_on={"rid": "a"}) as process,
    ):
        await bench.submit("a")
        dead = await eventually(lambda: next((one for one in view.replicas() if claims.held(one)), None), 20)
        process.kill()
        await process.wait()
        async with bench.replica():
            started = time.monotonic()
            assert await FailureDetector(connection, pipeline, claims).mark_down(dead)
            await bench.result("a")
            assert time.monotonic() - started < HEARTBEAT_TIMEOUT / 2


async def test_claims_of_a_former_life_are_not_requeued_when_its_successor_dies(
    connection: Connection, pipeline: str
) -> None:
    """The replica that has the task by now would lose it."""
    async with stage_bench(connection, pipeline), ClaimBook(connection, pipeline) as claims:
        held = (("a", "$JS.ACK.work.stage-0-interactive.1.7.7.0.0"),)
        told = Claim(stage_id=0, replica="r0", instance="former", number=1, held=held)
        await connection.publish(subjects.claim(pipeline, 0, "r0"), codec.encode(told))
        former = ReplicaRecord(stage_id=0, replica="r0", instance="former")
        await eventually(lambda: claims.held(former) == held)
        assert claims.held(replace(former, instance="successor")) == ()


async def test_last_heartbeat_lists_the_claims_when_a_later_announcement_was_lost(
    connection: Connection, pipeline: str
) -> None:
    """Tasks that were abandoned meanwhile run elsewhere by now; requeueing would take them away there."""
    abandoned, held = (("a", "$JS.ACK.work.stage-0-interactive.1.7.7.0.0"),), (("b", "$JS.ACK.work.s.1.8.8.0.0"),)
    async with stage_bench(connection, pipeline), ClaimBook(connection, pipeline) as claims:
        told = Claim(stage_id=0, replica="r0", instance="i", number=4, held=abandoned)
        await connection.publish(subjects.claim(pipeline, 0, "r0"), codec.encode(told))
        before = ReplicaRecord(stage_id=0, replica="r0", instance="i", announced=3)
        await eventually(lambda: claims.held(before) == abandoned)
        assert claims.held(replace(before, announced=5, claims=held)) == held
        assert claims.held(replace(before, announced=4, claims=())) == ()


async def test_claims_are_announced_to_a_late_listener(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, hang_on={"rid": "a"}) as bench, bench.replica(grace=0.0) as replica:
        await bench.submit("a")
        await eventually(lambda: replica.record.in_flight)
        async with ClaimBook(connection, pipeline) as claims:
            claim = await eventually(lambda: claims._announced.get((0, "r0")))
            assert list(claim.held.values()) == ["a"]


async def test_restart_of_the_server_does_not_make_living_replicas_look_gone(
    own_server: EmbeddedServer, pipeline: str
) -> None:
    """The outage is longer than the lifetime of a record: the server lets all expire before anybody can beat again."""
    changes: list[ReplicaChange] = []
    async with (
        connect(own_server.url, name="observer", role="test") as conn,
        stage_bench(conn, pipeline) as bench,
        ReplicaView(conn, pipeline, timeout=10 * HEARTBEAT_TIMEOUT) as view,
        registered(bench, "a") as one,
        registered(bench, "b") as two,
    ):
        await eventually(lambda: statuses(view) == {"r0": "starting", "r1": "starting"})
        view.on_change(changes.append)
        for living in (one, two):
            assert living.registration._beating is not None
            living.registration._beating.cancel()
        await restart(own_server, outage=1.5 * HEARTBEAT_TIMEOUT)
        await eventually(lambda: len(view._absent) == 2, 9, what="the records have expired")
        bucket = Bucket(conn, stores.replicas_bucket(pipeline))
        for living in (one, two):
            record = replace(living.registration.record, status=ReplicaStatus.UP)
            await bucket.put(stores.replica_key(*record.key), codec.encode(record))
        await eventually(lambda: statuses(view) == {"r0": "up", "r1": "up"})
        assert gone(changes) == []


async def test_replica_that_is_back_later_than_its_observer_does_not_look_gone(
    own_server: EmbeddedServer, pipeline: str
) -> None:
    """Its record expires before its eyes: absence is believed only after one full timeout of connection."""
    changes: list[ReplicaChange] = []
    timeout = 3.0
    async with (
        Proxy(own_server.url) as proxy,
        connect(own_server.url, name="observer", role="test") as conn,
        connect(proxy.url, name="worker", role="worker") as worker,
        stage_bench(conn, pipeline, heartbeat_timeout=timeout) as bench,
        ReplicaView(conn, pipeline, timeout=timeout) as view,
        bench.replica(worker),
    ):
        await eventually(lambda: statuses(view) == {"r0": "up"})
        view.on_change(changes.append)
        proxy.cut()
        await restart(own_server, outage=1.2 * timeout)
        await eventually(lambda: view._absent, 2 * timeout, what="the record has expired")
        proxy.heal()
        await eventually(
            lambda: any(change.after is not None for change in changes), 2 * timeout, what="it beats again"
        )
        await eventually(lambda: not view._absent)
        assert gone(changes) == []


async def test_replica_that_died_during_an_outage_is_reported_gone_after_a_full_timeout(
    own_server: EmbeddedServer, pipeline: str
) -> None:
    changes: list[ReplicaChange] = []
    async with (
        connect(own_server.url, name="observer", role="test") as conn,
        stage_bench(conn, pipeline) as bench,
        view_of(bench) as view,
    ):
        silent = Registered(bench, "a")
        await silent.registration.__aenter__()
        view.on_change(changes.append)
        assert silent.registration._beating is not None
        silent.registration._beating.cancel()
        await restart(own_server, outage=1.5 * HEARTBEAT_TIMEOUT)
        await eventually(lambda: gone(changes), 10)
        assert conn.connected_since is not None
        assert time.monotonic() - conn.connected_since >= HEARTBEAT_TIMEOUT


async def restart(server: EmbeddedServer, *, outage: float) -> None:
    await server.kill()
    await asyncio.sleep(outage)
    await server.start()
