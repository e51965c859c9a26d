"""A replica that hangs, or that the network hides: its lease ends, others run its task, and it comes back as a stranger."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from omnibus.broker.connection import Connection
from omnibus.broker.embedded import EmbeddedServer
from omnibus.child_process import ChildProcess, start_child
from omnibus.orchestrator import disconnects
from omnibus.orchestrator.disconnects import DisconnectListener, SystemAccount
from omnibus.registry.death.claim_book import ClaimBook
from omnibus.registry.death.failure_detector import FailureDetector
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.registry.presence.replica_view import ReplicaView
from tests.support.proxy import Proxy
from tests.support.stage_bench import REPLICA_PROCESS, StageBench, stage_bench
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
TIMEOUT = 2.0
"""Heartbeat timeout, and so the lease of a task."""
MARGIN = 1.0
"""Seconds beyond it that a hang may cost."""


@asynccontextmanager
async def replica_behind(proxy: Proxy, bench: StageBench, name: str) -> AsyncIterator[ChildProcess]:
    """A replica process whose only way to the broker is the proxy."""
    words = (proxy.url, name, msgspec.json.encode(bench.spec).decode())
    process = await start_child(sys.executable, "-m", REPLICA_PROCESS, *words, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def listener(server: EmbeddedServer, connection: Connection, view: ReplicaView) -> AsyncIterator[None]:
    """A listener for lost connections, and nothing else of an orchestrator: the bench takes the events."""
    system = SystemAccount(url=server.system_url, account="OMNI")
    async with ClaimBook(connection, view.pipeline) as claims:
        detector = FailureDetector(connection, view.pipeline, claims)
        listening = asyncio.create_task(
            DisconnectListener(view, detector, connection.metrics).run(system), name="witness"
        )
        yield
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def working(view: ReplicaView, instance: str) -> ReplicaRecord:
    """The record of a replica that has a task in hand."""
    return await eventually(lambda: find(view, instance, busy=True), 20, what=f"{instance} has a task")


def find(view: ReplicaView, instance: str, *, busy: bool = False) -> ReplicaRecord | None:
    found = (one for one in view.replicas() if one.instance == instance and (one.claims or not busy))
    return next(found, None)


@pytest.mark.parametrize("trouble", ["hang", "black hole"])
async def test_task_runs_elsewhere_within_its_lease_when_its_replica_says_nothing(
    nats_server: EmbeddedServer, connection: Connection, pipeline: str, trouble: str
) -> None:
    """And the silent one, when it speaks again, gives no second result, and serves under a registration of its own."""
    async with (
        stage_bench(connection, pipeline, heartbeat_timeout=TIMEOUT, hang_on={"rid": "a", "attempts": [1]}) as bench,
        ReplicaView(connection, pipeline, timeout=TIMEOUT) as view,
        Proxy(nats_server.url) as proxy,
        replica_behind(proxy, bench, "silent") as silent,
    ):
        await bench.submit("a")
        before = await working(view, "silent")
        async with bench.replica() as other:
            if trouble == "hang":
                silent.send_signal(signal.SIGSTOP)
            else:
                proxy.black_hole()
            started = time.monotonic()
            result = await bench.result("a", 2 * TIMEOUT)
            assert time.monotonic() - started < TIMEOUT + MARGIN
            assert result.replica == other.record.replica
            await eventually(lambda: find(view, "silent") is None, 2 * TIMEOUT, what="its record has expired")
            silent.send_signal(signal.SIGCONT)
            proxy.heal()
            back = await eventually(lambda: find(view, "silent"), 10, what="it is registered again")
            assert back.registered_at > before.registered_at
            await eventually(lambda: not find(view, "silent", busy=True), what="it has let go of the task")
        await bench.submit("b")
        assert (await bench.result("b")).replica == back.replica
        await bench.all_done()
        assert bench.published["a"] == 1


async def test_living_replica_keeps_its_task_when_its_connection_is_reset_for_a_moment(
    nats_server: EmbeddedServer, connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server tells the witness of a lost client, which is back before it is believed; longer here, for slow machines."""
    monkeypatch.setattr(disconnects, "DEBOUNCE", 1.0)
    async with (
        stage_bench(connection, pipeline, heartbeat_timeout=TIMEOUT, max_attempts=1, latency=2.0) as bench,
        ReplicaView(connection, pipeline, timeout=TIMEOUT) as view,
        listener(nats_server, connection, view),
        Proxy(nats_server.url) as proxy,
        replica_behind(proxy, bench, f"living-{pipeline}"),
    ):
        await bench.submit("a")
        before = await working(view, f"living-{pipeline}")
        proxy.drop()
        await eventually(lambda: find(view, f"living-{pipeline}").reconnects)  # type: ignore[union-attr]
        await bench.result("a")
        await bench.all_done()
        after = find(view, f"living-{pipeline}")
        assert after is not None
        assert (after.replica, after.registered_at) == (before.replica, before.registered_at)


async def test_task_runs_elsewhere_within_its_lease_when_its_replica_is_cut_off(
    nats_server: EmbeddedServer, connection: Connection, pipeline: str
) -> None:
    """Without a word of the server's: here nobody listens to its system account."""
    async with (
        stage_bench(connection, pipeline, heartbeat_timeout=TIMEOUT, hang_on={"rid": "a", "attempts": [1]}) as bench,
        ReplicaView(connection, pipeline, timeout=TIMEOUT) as view,
        Proxy(nats_server.url) as proxy,
        replica_behind(proxy, bench, "cut"),
    ):
        await bench.submit("a")
        await working(view, "cut")
        async with bench.replica():
            proxy.cut()
            started = time.monotonic()
            await bench.result("a", 2 * TIMEOUT)
            assert time.monotonic() - started < TIMEOUT + MARGIN
            proxy.heal()
            await eventually(
                lambda: (one := find(view, "cut")) is not None and one.status == "up" and one.reconnects, 10
            )
            await eventually(lambda: not find(view, "cut", busy=True), what="it has let go of the task")
        assert bench.published["a"] == 1
