"""Deadlines are in the server's time: the clocks of clients and workers may be off, or be stepped."""

from __future__ import annotations

import asyncio
import time

import pytest

from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.observability.metrics import Metrics
from omnibus.orchestrator.disconnects import DisconnectListener, SystemAccount
from omnibus.registry.death.claim_book import ClaimBook
from omnibus.registry.death.failure_detector import FailureDetector
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.requests.state import RequestState
from omnibus.wire.request import Request
from tests.support.flow import line, serving
from tests.support.stage_bench import stage_bench

pytestmark = pytest.mark.integration
HOUR = 3600.0
_host_clock = time.time


def step(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set the clock of this process, though not the server's."""
    monkeypatch.setattr(time, "time", lambda: _host_clock() + seconds)


@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
async def test_servers_time_counts_when_the_hosts_clock_is_off(
    nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    step(monkeypatch, seconds)
    async with connect(nats_server.url, name="off") as connection:
        assert connection.clock.measured
        assert connection.clock.now() == pytest.approx(_host_clock(), abs=1.0)
        assert connection.clock.at(time.time() - 5.0) == pytest.approx(_host_clock() - 5.0, abs=1.0)
        step(monkeypatch, 2 * seconds)
        assert connection.clock.now() == pytest.approx(_host_clock(), abs=1.0)


@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
async def test_requests_are_served_and_expire_in_time_when_the_clock_was_stepped(
    nats_server: EmbeddedServer, pipeline: str, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """An hour ahead, the timer would fire an hour late; an hour behind, at once."""
    spec = line(pipeline)
    async with (
        connect(nats_server.url, name="off") as connection,
        serving(connection, spec) as producer,
    ):
        step(monkeypatch, seconds)
        served = await producer.submit(spec, Request(prompt="hi", deadline=10.0))
        assert (await served.result()).state is RequestState.DONE
        began = time.monotonic()
        hung = {"s0": {"hang_on": {"rid": "."}}}
        late = await producer.submit(spec, Request(prompt="hi", deadline=0.6, sampling_params=hung))
        assert (await late.result()).state is RequestState.EXPIRED
        assert 0.5 < time.monotonic() - began < 10.0


async def test_listener_asks_for_nothing_when_its_user_may_only_listen(
    nats_server: EmbeddedServer, connection: Connection, pipeline: str
) -> None:
    """A refusal counts as an alarm, and would be repeated for ever."""
    metrics, view = Metrics(), ReplicaView(connection, pipeline, timeout=1.0)
    detector = FailureDetector(connection, pipeline, ClaimBook(connection, pipeline))
    system = SystemAccount(url=nats_server.system_url, account="OMNI")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await DisconnectListener(view, detector, metrics).run(system)
    assert metrics.registry.get_sample_value("omnibus_broker_permission_denied_total") == 0


async def test_task_is_run_when_the_workers_clock_is_ahead(
    nats_server: EmbeddedServer, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own clock, the deadline was long ago."""
    async with connect(nats_server.url, name="client") as client, stage_bench(client, pipeline) as bench:
        await bench.submit("r", seconds=20.0)
        step(monkeypatch, HOUR)
        async with connect(nats_server.url, name="worker") as worker, bench.replica(worker):
            assert (await bench.result("r")).ticket.rid == "r"


async def test_task_past_its_deadline_is_dropped_when_the_workers_clock_is_behind(
    nats_server: EmbeddedServer, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(nats_server.url, name="client") as client, stage_bench(client, pipeline) as bench:
        await bench.submit("r", seconds=-1.0)
        step(monkeypatch, -HOUR)
        async with connect(nats_server.url, name="worker") as worker, bench.replica(worker):
            await bench.all_done()
        assert not bench.events["r"]
