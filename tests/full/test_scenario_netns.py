"""Stages on hosts with addresses of their own: workers need the broker's address, and nothing needs theirs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.netns import Host, two_hosts
from tests.support.served import write_pipeline
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration

PORT = 4222
SAMPLES = 400_000
TIMEOUT = 2.0
PIPELINE = f"""
name: apart
deadline: 60s
heartbeat_timeout: {TIMEOUT:g}s
stages:
- {{stage_id: 0, name: writer, engine: sim, slots: 4, final_output: true, final_output_type: text,
   engine_args: {{outputs: {{text: text, wave: tensor}}, size: {SAMPLES}}}}}
- {{stage_id: 1, name: speaker, engine: sim, slots: 4, input_sources: [0], final_output: true, final_output_type: audio,
   engine_args: {{outputs: {{audio: audio}}, size: {SAMPLES}}}}}
"""
"""The tensor that goes from stage to stage and the audio that comes out are megabytes: far more than a message carries."""


@dataclass(frozen=True, slots=True)
class Apart:
    """A head that runs the broker, the orchestrator and the front door, and a host beside it."""

    head: Host
    far: Host
    folder: Path

    @property
    def nats(self) -> dict[str, str]:
        return {
            "OMNIBUS_NATS_URL": f"nats://{self.head.address}:{PORT}",
            "OMNIBUS_NATS_CREDENTIALS": str(self._credentials),
            "OMNIBUS_STATE_DIR": str(self.folder / "none"),
        }

    @property
    def _credentials(self) -> Path:
        """A password that everybody has before the broker is there."""
        path = self.folder / "state" / "nats.credentials"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("omnibus:known-before\n")
        return path

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def serve(self, stages: str):
        """`omnibus serve` on the head, with these of the stages."""
        file = write_pipeline(self.folder, PIPELINE)
        words = ("serve", str(file), "--stages", stages, "--state-dir", str(self.folder / "state"))
        return self.head.running(*words, "--nats-host", self.head.address, "--insecure", env={}, log=self.log)

    def work(self, host: Host, stage: str, replicas: int = 1):
        """`omnibus worker` on a host."""
        words = ("worker", "--stage", stage, "--replicas", str(replicas), "--pipeline", "apart")
        return host.running(*words, env=self.nats, log=self.log)

    def ask(self, host: Host, prompt: str) -> subprocess.CompletedProcess[str]:
        """`omnibus submit` on a host."""
        return host.omnibus("submit", prompt, "-p", "apart", "--json", "-o", str(self.folder / "out"), env=self.nats)

    def hosts_of(self, stage: str) -> int:
        """Replicas of a stage that are up."""
        said = self.head.omnibus("status", "-p", "apart", "--json", env=self.nats)
        if said.returncode != 0:
            return 0
        (found,) = (one for one in json.loads(said.stdout)["stages"] if one["name"] == stage)
        return sum(replica["status"] == "up" for replica in found["replicas"])


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Apart]:
    with two_hosts() as (head, far):
        yield Apart(head, far, tmp_path)


async def test_stage_on_another_host_serves_by_outbound_connections_to_the_broker_alone(apart: Apart) -> None:
    with apart.serve("writer"), apart.work(apart.far, "speaker", replicas=2):
        await eventually(lambda: apart.hosts_of("speaker") == 2, 60.0)
        assert_answered(apart.ask(apart.head, "from head to far"), "from head to far")
        assert_answered(apart.ask(apart.far, "asked from far"), "asked from far")

        assert apart.far.listening() == [], "a worker listens on nothing"
        assert apart.far.peers() == {(apart.head.address, PORT)}


async def test_stages_are_served_when_workers_on_other_hosts_start_before_the_head(apart: Apart) -> None:
    with apart.work(apart.far, "speaker"), apart.work(apart.far, "writer", replicas=2), apart.serve(""):
        await eventually(lambda: apart.hosts_of("speaker") == 1 and apart.hosts_of("writer") == 2, 60.0)
        assert_answered(apart.ask(apart.head, "all stages are far"), "all stages are far")


async def test_host_serves_again_when_its_cable_was_out_for_longer_than_the_heartbeat_timeout(apart: Apart) -> None:
    with apart.serve("writer"), apart.work(apart.far, "speaker"):
        await eventually(lambda: apart.hosts_of("speaker") == 1, 60.0)
        apart.far.ip("link", "set", "cable", "down")
        await eventually(lambda: apart.hosts_of("speaker") == 0, TIMEOUT + 5.0, what="the lost host is noticed")
        apart.far.ip("link", "set", "cable", "up")
        await eventually(lambda: apart.hosts_of("speaker") == 1, 30.0, what="the host is back")
        assert_answered(apart.ask(apart.head, "after the gap"), "after the gap")


def assert_answered(done: subprocess.CompletedProcess[str], prompt: str) -> None:
    assert done.returncode == 0, done.stderr
    text, audio = json.loads(done.stdout)["outputs"]
    assert text["text"] == prompt
    assert audio["bytes"] > SAMPLES * 2, "16-bit samples, and a header"
