"""Failover: the server's disconnect events tell orchestrators of dead replicas when nobody else can."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import pytest_asyncio

from omnibus.broker.connection import Connection, ReceivedMessage, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.client.producer import Producer
from omnibus.observability.metrics import Metrics
from omnibus.orchestrator.disconnects import DEBOUNCE, DisconnectListener, SystemAccount
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.death.claim_book import ClaimBook
from omnibus.registry.death.failure_detector import FailureDetector
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.requests.state import RequestState
from omnibus.wire import codec, subjects
from omnibus.wire.control import Announcement, AskClaims
from omnibus.wire.request import Request
from tests.support.cluster import Cluster
from tests.support.directed import one_stage, orchestrator, replica
from tests.support.processes import children_of
from tests.support.stage_bench import HEARTBEAT_TIMEOUT, stage_bench
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
HELLO = Request(prompt="a red circle")
LATENCY, TIMEOUT = 1.0, 10.0
BOUND = 0.6
"""Seconds from a kill to the start elsewhere, at most. Quiet, it is 0.25; these machines are not."""


@pytest_asyncio.fixture(params=["broker", "round-robin"])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    """Two workers of one replica each."""
    spec = one_stage("failover", request.param, heartbeat_timeout=TIMEOUT, engine_args={"latency": LATENCY})
    async with Cluster(tmp_path / "cluster", spec) as running:
        await running.worker(0, name="other")
        await running.wait_up({0: 2})
        yield running


async def test_task_runs_elsewhere_at_once_when_its_replica_and_its_supervisor_are_killed(cluster: Cluster) -> None:
    """A whole group is killed with -9: no supervisor is left to report it, long before the heartbeat timeout."""
    async with Producer(cluster.connection) as producer, ClaimBook(cluster.connection, "failover") as claims:
        submission = await producer.submit(cluster.spec, HELLO)
        busy = await eventually(lambda: next((one for one in cluster.view.replicas() if claims.held(one)), None))
        group = next(group for group in _groups(cluster) if busy.pid in group)
        for pid in group:
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        result = await submission.result()
        assert result.state is RequestState.DONE
        assert LATENCY <= time.monotonic() - killed < LATENCY + 1.0 < TIMEOUT / 2
        await eventually(lambda: sum(one.alive for one in cluster.view.replicas()) == 1)


def _groups(cluster: Cluster) -> list[list[int]]:
    """Each worker with its replicas."""
    pids = [cluster._processes[name].pid for name in ("worker-0", "other")]
    return [[pid, *children_of(pid, "replica_main")] for pid in pids]


async def test_replica_is_marked_down_long_before_its_heartbeat_expires_when_it_is_killed(
    nats_server: EmbeddedServer, connection: Connection, pipeline: str
) -> None:
    async with stage_bench(connection, pipeline, hang_on={"rid": "a", "attempts": [1]}) as bench:
        system = SystemAccount(url=nats_server.system_url, account="OMNI")
        async with (
            orchestrator(connection, bench.spec, system=system),
            ReplicaView(connection, pipeline, timeout=HEARTBEAT_TIMEOUT) as view,
            bench.process("dying") as process,
        ):
            await view.wait_until(lambda found: any(one.status == "up" for one in found), 20)
            process.kill()
            killed = time.monotonic()
            await view.wait_until(lambda found: all(one.status == "down" for one in found), HEARTBEAT_TIMEOUT)
            assert time.monotonic() - killed < HEARTBEAT_TIMEOUT / 2


async def test_replica_stays_up_when_it_beats_after_its_connection_broke(connection: Connection, pipeline: str) -> None:
    spec = one_stage(pipeline, heartbeat_timeout=30.0)
    await ensure_layout(connection, layout_of(spec))
    async with detector_of(connection, spec) as (listener, view), replica(connection, spec) as living:
        await view.wait_until(lambda found: any(one.status == "up" for one in found), 5)
        beaten = view.replicas()[0].last_heartbeat
        listener._on_message(disconnected("test", "Read Error"))
        connection.generation += 1
        living._registration.hurry()  # as its connection does when it is back
        await eventually(lambda: not listener._waiting)
        assert [one.status for one in view.replicas()] == ["up"]
        assert view.replicas()[0].last_heartbeat > beaten


@pytest.mark.parametrize(("reason", "wait"), [("Client Closed", 0.0), ("Read Error", DEBOUNCE)])
async def test_replica_is_declared_down_when_its_connection_is_gone_and_it_is_silent(
    connection: Connection, pipeline: str, reason: str, wait: float
) -> None:
    """At once for a socket that was closed; after any other end the client has a moment to come back."""
    spec = one_stage(pipeline, heartbeat_timeout=30.0)
    await ensure_layout(connection, layout_of(spec))
    async with detector_of(connection, spec) as (listener, view), replica(connection, spec) as silent:
        await view.wait_until(lambda found: any(one.status == "up" for one in found), 5)
        started = time.monotonic()
        listener._on_message(disconnected("test", reason))
        if wait:
            await silent._registration.beat()  # was under way when the connection ended: no sign of life
        await view.wait_until(lambda found: any(one.status == "down" for one in found), 5)
        assert wait <= time.monotonic() - started < wait + DEBOUNCE
        silent._registration.hurry()
        await view.wait_until(lambda found: [one.status for one in found] == ["up"], 5)  # nothing is lost by it


async def test_no_replica_is_marked_down_when_another_client_leaves(connection: Connection, pipeline: str) -> None:
    spec = one_stage(pipeline, heartbeat_timeout=30.0)
    await ensure_layout(connection, layout_of(spec))
    async with detector_of(connection, spec) as (listener, view), replica(connection, spec):
        await view.wait_until(lambda found: any(one.status == "up" for one in found), 5)
        listener._on_message(disconnected("a front door", "Client Closed"))
        assert not listener._waiting


async def test_task_runs_elsewhere_within_the_bound_when_its_replica_is_killed_with_data_in_flight(
    nats_server: EmbeddedServer, connection: Connection, pipeline: str
) -> None:
    """Unread data makes the kernel reset the connection: the server says "Read Error", as of a client that may come back."""
    async with (
        stage_bench(
            connection,
            pipeline,
            heartbeat_timeout=TIMEOUT,
            hang_on={"rid": "a", "attempts": [1]},
            latency=0.05,  # a task that is done at once is never announced
        ) as bench,  # fmt: skip
        heard_claims(connection, pipeline) as heard,
        disconnects(nats_server) as reasons,
        orchestrator(connection, bench.spec, system=SystemAccount(url=nats_server.system_url, account="OMNI")),
        bench.process(f"dying-{pipeline}") as dying,
    ):
        await bench.submit("a")
        await eventually(lambda: heard, 20)
        async with bench.replica():
            dying.send_signal(signal.SIGSTOP)
            await connection.publish(subjects.ask_all(pipeline), codec.encode(AskClaims()))
            await connection.flush()
            await eventually(lambda: unread(dying.pid))
            dying.kill()
            killed = time.monotonic()
            await eventually(lambda: len(heard) > 1, TIMEOUT)
            assert time.monotonic() - killed < BOUND
            assert reasons[f"dying-{pipeline}"] == "Read Error"


def unread(pid: int) -> bool:
    """Whether a connection of a process holds bytes that it has not read."""
    inodes = {str(link.readlink()).removeprefix("socket:[").removesuffix("]") for link in _files(pid)}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[9] in inodes and int(row[4].partition(":")[2], 16) for row in rows)


def _files(pid: int) -> list[Path]:
    return [link for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]


@asynccontextmanager
async def heard_claims(connection: Connection, pipeline: str) -> AsyncIterator[list[str]]:
    """The replicas that announced claims, each time one announces anew."""
    said: list[str] = []

    async def on_message(message: ReceivedMessage) -> None:
        claim: Announcement = codec.decode(message.data, Announcement)
        if claim.taken and claim.replica not in said:
            said.append(claim.replica)

    subscription = await connection.subscribe(subjects.claims(pipeline), on_message)
    yield said
    await subscription.unsubscribe()


@asynccontextmanager
async def disconnects(server: EmbeddedServer) -> AsyncIterator[dict[str, str]]:
    """Why connections ended, by the client's name."""
    reasons: dict[str, str] = {}

    async def on_message(message: ReceivedMessage) -> None:
        event = msgspec.json.decode(message.data)
        reasons[event["client"].get("name", "")] = event["reason"]

    async with connect(server.system_url, name="listener", role="disconnects") as observer:
        await observer.subscribe(subjects.disconnects("OMNI"), on_message)
        yield reasons


def disconnected(name: str, reason: str) -> ReceivedMessage:
    """An event as the server publishes it."""
    data = msgspec.json.encode({"client": {"name": name, "acc": "OMNI"}, "reason": reason})
    return SimpleNamespace(data=data, subject="$SYS.ACCOUNT.OMNI.DISCONNECT", reply="", headers=None)


@asynccontextmanager
async def detector_of(
    connection: Connection, spec: PipelineSpec
) -> AsyncIterator[tuple[DisconnectListener, ReplicaView]]:
    async with (
        ReplicaView(connection, spec.name, timeout=spec.heartbeat_timeout) as view,
        ClaimBook(connection, spec.name) as claims,
    ):
        yield DisconnectListener(view, FailureDetector(connection, spec.name, claims), Metrics()), view
