"""`/health` of a command's metrics port, as the probes of a cluster ask it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from omnibus.broker.connection import connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.listening import free_port
from omnibus.pipeline.loading import load_pipeline
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.deployed_pipelines import deploy_pipeline
from tests.support.processes import children_of
from tests.support.served import start, write_pipeline
from tests.support.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
TIMEOUT = 90.0
PIPELINE = """
name: probed
deadline: 30s
heartbeat_timeout: 2s
stages:
- {stage_id: 0, name: writer, engine: sim, final_output: true, final_output_type: text, num_replicas: 2,
   engine_args: {start_latency: 1.5}}
"""
Seen = tuple[int, dict[str, object]]


class Probe:
    """The port of a command that runs."""

    def __init__(self, pid: int, port: int, log: Path) -> None:
        self.pid, self.log = pid, log
        self._url = f"http://127.0.0.1:{port}/health"

    def look(self) -> Seen:
        """Status and body; (0, {}) while nobody listens."""
        try:
            answer = httpx.get(self._url, timeout=20.0)
        except httpx.TransportError:
            return 0, {}
        return answer.status_code, answer.json()

    async def until(self, status: int, *, has: str) -> dict[str, object]:
        """The body of the first answer with this status that says something of `has`."""
        bodies: list[dict[str, object]] = [{}]

        def is_so() -> bool:
            found, bodies[0] = self.look()
            return found == status and has in bodies[0]

        await eventually(is_so, TIMEOUT, what=f"{status}, which says something of {has}; {self.log.read_text()}")
        return bodies[0]


@contextmanager
def running(folder: Path, server: EmbeddedServer, *words: str) -> Iterator[Probe]:
    folder.mkdir(exist_ok=True)
    port, log = free_port(), folder / "log"
    command = start(*words, "--metrics-port", str(port), "--state-dir", str(folder), nats=server.url, log=log)
    try:
        yield Probe(command.pid, port, log)
        command.send_signal(signal.SIGINT)
        assert command.wait(TIMEOUT) in (0, 130), log.read_text()
    finally:
        command.kill()


async def deployed(server: EmbeddedServer, spec: PipelineSpec) -> None:
    async with connect(server.url, name="test", role="operator") as connection:
        await deploy_pipeline(connection, spec)


async def test_worker_is_well_when_all_of_its_replicas_are_up_and_not_before(
    own_server: EmbeddedServer, tmp_path: Path
) -> None:
    spec = load_pipeline(str(write_pipeline(tmp_path / "file", PIPELINE)))
    with running(tmp_path, own_server, "worker", "--pipeline", "probed", "--stage", "writer") as worker:
        assert (await worker.until(503, has="starting"))["status"] == "unavailable", "its pipeline is not deployed"
        await deployed(own_server, spec)
        loading = await worker.until(503, has="replicas")
        assert loading == {"status": "unavailable", "broker": True, "replicas": False}
        assert await worker.until(200, has="replicas") == {"status": "ok", "broker": True, "replicas": True}

        os.kill(children_of(worker.pid, "replica_main")[0], signal.SIGKILL)
        assert (await worker.until(503, has="replicas"))["replicas"] is False
        await worker.until(200, has="replicas")


async def test_commands_are_well_while_the_broker_can_be_reached(own_server: EmbeddedServer, tmp_path: Path) -> None:
    await deployed(own_server, load_pipeline(str(write_pipeline(tmp_path / "file", PIPELINE))))
    scaling = ("autoscale", "--pipeline", "probed", "--stage", "writer", "--max", "2")
    with (
        running(tmp_path / "o", own_server, "orchestrator", "--pipeline", "probed") as orchestrator,
        running(tmp_path / "a", own_server, *scaling) as autoscaler,
    ):
        assert await orchestrator.until(200, has="broker") == {"status": "ok", "broker": True}
        assert (await autoscaler.until(200, has="replicas"))["replicas"] is True, "it wants none"
        await own_server.stop()
        assert (await orchestrator.until(503, has="broker"))["broker"] is False
        assert (await autoscaler.until(503, has="broker"))["broker"] is False
