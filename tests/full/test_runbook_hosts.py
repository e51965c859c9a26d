"""An operator's way by the documentation: two hosts and a server with production.conf, broken, and mended by the runbook."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from omnibus.broker.server_binary import find_binary
from tests.support.netns import Host, two_hosts
from tests.support.served import command_line
from tests.support.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

STAGES = """
def shout(stage_input):
    return stage_input.request.text().upper() + "!"


def spell(stage_input):
    yield from (f"{character} " for character in stage_input.sources["shout"]["text"])
"""
PIPELINE = """
name: own
deadline: 120s
heartbeat_timeout: 2s
stages:
- {stage_id: 0, name: shout, engine: python, model: "stages:shout", engine_args: {outputs: {text: text}}}
- {stage_id: 1, name: spell, engine: python, model: "stages:spell", input_sources: [0],
   final_output: true, final_output_type: text}
"""


@dataclass(frozen=True, slots=True)
class Operated:
    """The folders of an operator: on the head all keys, elsewhere copies of what a worker of stage 1 needs."""

    head: Host
    far: Host
    folder: Path

    @property
    def url(self) -> str:
        return f"tls://{self.head.address}:4222"

    def environment(self, keys: str = "keys") -> Mapping[str, str]:
        return {
            "OMNIBUS_NATS_URL": self.url, "OMNIBUS_NATS_CREDENTIALS": str(self.folder / keys),
            "OMNIBUS_STATE_DIR": str(self.folder / "none"), "PYTHONPATH": str(self.folder),
        }  # fmt: skip

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def prepare(self) -> None:
        """`omnibus nats credentials all`, and the copy for the other host."""
        (self.folder / "stages.py").write_text(STAGES)
        (self.folder / "own.yaml").write_text(PIPELINE)
        words = ("nats", "credentials", "all", "--pipeline", "own.yaml", "--host", self.head.address, "--dir", "keys")
        subprocess.run(command_line(*words), cwd=self.folder, check=True, capture_output=True, timeout=60)
        there = self.folder / "keys-there"
        there.mkdir()
        for file in (self.folder / "keys").glob("*"):
            if file.name == "ca.pem" or file.stem in {"worker-1", "supervisor-1"}:
                shutil.copy(file, there)

    def nats_server(self):
        """`nats-server -c keys/production.conf` on the head."""
        command = (str(find_binary(None)), "-c", str(self.folder / "keys" / "production.conf"))
        return self.head.running_program(*command, env={}, log=self.log)

    @contextmanager
    def on_the_head(self) -> Iterator[None]:
        """`omnibus pipeline deploy`, then an orchestrator, a front door and the first stage, each a process of its own role."""
        file = str(self.folder / "own.yaml")
        deployed = self.ask("pipeline", "deploy", file)
        assert deployed.returncode == 0, deployed.stderr
        commands = (
            ("orchestrator", "--pipeline", "own"), ("frontdoor", "--port", "8000"),
            ("worker", "--stage", "shout", "--pipeline", file),
        )  # fmt: skip
        with ExitStack() as stack:
            for words in commands:
                stack.enter_context(self.head.running(*words, env=self.environment(), log=self.log))
            yield

    def worker(self, host: Host):
        words = ("worker", "--stage", "spell", "--pipeline", str(self.folder / "own.yaml"))
        return host.running(*words, env=self.environment("keys-there"), log=self.log)

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.head.omnibus(*words, env=self.environment())

    def submit(self, prompt: str) -> str:
        done = self.ask("submit", "-p", "own", prompt)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def up(self, stage: str) -> int:
        """Replicas of a stage that `omnibus status` shows as up."""
        done = self.ask("status", "-p", "own", "--json")
        if done.returncode != 0:
            return 0
        (found,) = [one for one in json.loads(done.stdout)["stages"] if one["name"] == stage]
        return sum(replica["status"] == "up" for replica in found["replicas"])


@pytest.fixture
def operated(tmp_path: Path) -> Iterator[Operated]:
    with two_hosts() as (head, far):
        made = Operated(head, far, tmp_path)
        made.prepare()
        yield made


async def test_request_ends_done_when_the_runbook_is_followed_after_a_host_was_lost(operated: Operated) -> None:
    with operated.nats_server(), operated.on_the_head():
        with operated.worker(operated.far) as worker:
            await eventually(lambda: operated.up("spell") == 1, 60.0, what="a worker on the other host")
            assert operated.submit("hi") == "H I !"
            operated.far.ip("link", "set", "cable", "down")
            await eventually(lambda: operated.up("spell") == 0, 10.0, what="the lost host is noticed")
            worker.kill()
        with operated.worker(
            operated.head
        ):  # as the entry says: the same command on another machine, with the same copy
            await eventually(lambda: operated.up("spell") == 1, 60.0, what="a worker in its place")
            assert operated.submit("again") == "A G A I N !"


async def test_everything_goes_on_when_the_runbook_is_followed_after_the_server_was_killed(operated: Operated) -> None:
    with ExitStack() as stack:
        with operated.nats_server() as server:
            stack.enter_context(operated.on_the_head())
            stack.enter_context(operated.worker(operated.far))
            await eventually(lambda: operated.up("spell") + operated.up("shout") == 2, 60.0, what="everything is up")
            assert operated.submit("hi") == "H I !"
            server.kill()
            server.wait()
        examined = operated.ask("doctor")
        assert examined.returncode == 1
        assert "FAULT  connection" in examined.stdout
        with operated.nats_server():
            await eventually(lambda: operated.ask("doctor").returncode == 0, 30.0, what="the doctor finds no fault")
            assert operated.submit("again") == "A G A I N !"


def test_serve_says_what_to_start_in_its_place_when_it_is_given_the_credentials_of_roles(tmp_path: Path) -> None:
    """It failed half-way, for want of a permission."""
    made = Operated(Host("127.0.0.1", 0), Host("127.0.0.1", 0), tmp_path)
    made.prepare()
    words = command_line(
        "serve", str(tmp_path / "own.yaml"), "--nats", made.url, "--credentials", str(tmp_path / "keys")
    )
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "start `omnibus orchestrator`, `omnibus frontdoor` and `omnibus worker`" in done.stderr
