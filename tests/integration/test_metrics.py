"""Metrics of real processes, as Prometheus scrapes them."""

from __future__ import annotations

import math
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.observability.metrics import Metrics
from omnibus.orchestrator.queue_gauges import QueueGauges
from tests.support.broker import lay_out, publish_tasks, stage_puller
from tests.support.scraping import Scrape, promtool, shown_at
from tests.support.served import start, write_pipeline
from tests.support.waiting import eventually
from tools.serving import Serving, serving

pytestmark = pytest.mark.integration
REQUESTS = 4


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("metrics")
    flags = ("--port", "0", "--nats-port", "0", "--metrics-port", "0")
    with serving(str(write_pipeline(folder)), *flags, state_dir=folder / "state") as running:
        for _ in range(REQUESTS):
            complete(running.url)
        yield running


def complete(url: str) -> None:
    httpx.post(f"{url}/v1/completions", json={"prompt": "hello world"}, timeout=30.0).raise_for_status()


@pytest.mark.parametrize("where", ["front door", "port of the command"])
def test_every_process_of_serve_is_seen_when_one_place_is_scraped(served: Serving, where: str) -> None:
    url = f"{served.url}/metrics" if where == "front door" else shown_at(served.log)
    seen = Scrape.of(url)
    promtool("check", "metrics", stdin=seen.text)

    assert {"supervisor", "orchestrator", "frontdoor", "writer.0", "painter.0", "speaker.0"} == seen.values_of(
        "process"
    )
    stage = {"pipeline": "simple", "stage": "0"}
    assert seen.value("omnibus_stage_seconds_count", process="writer.0", **stage) == REQUESTS
    waits = seen.value("omnibus_request_queue_time_seconds_count", lane="interactive", **stage)
    assert waits == seen.value("omnibus_batch_size_count", **stage) == REQUESTS
    assert seen.value("omnibus_generation_tokens_total", **stage) == 2 * REQUESTS
    assert seen.value("omnibus_requests_total", pipeline="simple", state="done") == REQUESTS
    assert seen.value("omnibus_replicas", process="supervisor", status="up", **stage) == 1
    assert seen.value("omnibus_num_requests_waiting", process="orchestrator") == 0
    assert seen.value("omnibus_broker_connected") == 6


async def test_a_worker_shows_its_replicas_and_counts_on_when_one_was_killed(served: Serving, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ("worker", "--stage", "painter", "--metrics-port", "0", "--state-dir", str(tmp_path))
    command = start(*words, nats=served.nats_url, log=log)
    try:
        await eventually(lambda: "ready: simple" in log.read_text(), what="the worker is ready", timeout=60.0)
        url = shown_at(log)
        before = Scrape.of(url)
        assert before.values_of("process") == {"supervisor", "painter.0"}
        assert before.value("omnibus_broker_connected", process="painter.0") == 1

        os.kill(replica_of(command.pid), signal.SIGKILL)

        def counted() -> bool:
            return Scrape.of(url).value("omnibus_replica_restarts_total", stage="1", process="supervisor") == 1

        await eventually(counted, what="the restart is counted", timeout=30.0)

        def failed_over() -> bool:  # by the supervisor, or the orchestrator that the server told of the lost connection
            everywhere = (Scrape.of(url), Scrape.of(f"{served.url}/metrics"))
            return sum(seen.value("omnibus_failover_seconds_count", stage="1") for seen in everywhere) == 1

        await eventually(failed_over, what="the failover is counted", timeout=30.0)

        def again() -> bool:
            return Scrape.of(url).value("omnibus_replicas", process="supervisor", stage="1", status="up") == 2

        await eventually(again, what="it is up again", timeout=60.0)
        promtool("check", "metrics", stdin=Scrape.of(url).text)
        command.send_signal(signal.SIGINT)
        assert command.wait(60.0) == 0, log.read_text()
    finally:
        command.kill()


def replica_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = [int(child) for child in children if b"replica_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert len(found) == 1
    return found[0]


def test_a_port_that_is_taken_is_refused_with_the_flag_that_names_another(served: Serving, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ("orchestrator", "--metrics-port", str(port), "--state-dir", str(tmp_path))
        command = start(*words, nats=served.nats_url, log=tmp_path / "log")
        assert command.wait(60.0) == 2
    assert f"port {port} on 127.0.0.1 is taken; choose another with --metrics-port" in (tmp_path / "log").read_text()


async def test_queue_gauges_tell_how_many_wait_and_since_when(connection: Connection, pipeline: str) -> None:
    await lay_out(connection, pipeline)
    gauges = QueueGauges(connection, pipeline)
    await publish_tasks(connection, pipeline, ["first", "second"])
    await gauges.measure()
    first = ages(connection, pipeline)
    assert waiting(connection, pipeline) == 2
    assert 0 < first < 30

    async with stage_puller(connection, pipeline) as puller:
        puller.add_credit(2)
        held = [await puller.take(), await puller.take()]
        await gauges.measure()
        assert (waiting(connection, pipeline), ages(connection, pipeline)) == (0, 0)
        for one in held:
            await one.ack()


async def test_queue_gauges_are_unknown_when_the_broker_is_away(own_server: EmbeddedServer, pipeline: str) -> None:
    async with connect(own_server.url, name="test", role="orchestrator", metrics=Metrics()) as connection:
        await lay_out(connection, pipeline)
        gauges = QueueGauges(connection, pipeline)
        await gauges.measure()
        assert waiting(connection, pipeline) == 0
        await own_server.stop()
        await gauges.measure()
        assert math.isnan(waiting(connection, pipeline))
        assert math.isnan(ages(connection, pipeline))
        assert connection.metrics.registry.get_sample_value("omnibus_broker_connected") == 0


def waiting(connection: Connection, pipeline: str) -> float:
    return gauge(connection, "omnibus_num_requests_waiting", pipeline)


def ages(connection: Connection, pipeline: str) -> float:
    return gauge(connection, "omnibus_queue_oldest_age_seconds", pipeline)


def gauge(connection: Connection, name: str, pipeline: str) -> float:
    labels = {"pipeline": pipeline, "stage": "0", "lane": "interactive"}
    value = connection.metrics.registry.get_sample_value(name, labels)
    assert value is not None
    return value
