"""Scenarios B and C on omni-tiny: replicas of a stage here, of another there, each by a command of its own, in any order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from omnibus.broker.listening import free_port
from tests.support.scenario import replicas_up, worker, wrong_answers
from tests.support.waiting import eventually
from tools.serving import Serving, serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

START_WAIT = 100.0


async def test_pictures_are_right_when_the_head_runs_two_thinkers_and_a_worker_two_painters(tmp_path: Path) -> None:
    """Scenario B: `omnibus serve P --stages 0 --replicas 2`, and `omnibus worker --stage 1 --replicas 2`."""
    with (
        head(tmp_path, "--stages", "0", "--replicas", "2") as served,
        worker("1", replicas=2, nats=served.nats_url, folder=tmp_path),
    ):
        await all_up(served.nats_url, thinker=2, dit=2)
        assert wrong_answers(served.nats_url, "text,image", tmp_path) == {}


async def test_pictures_are_right_when_workers_start_before_a_head_without_stages(tmp_path: Path) -> None:
    """Scenario C: a head, a worker with two thinkers, a worker with a painter: three commands, the head last."""
    port = free_port()
    password = tmp_path / "state" / "nats.credentials"  # that everybody has before the broker is there
    password.parent.mkdir()
    password.write_text("omnibus:known-before\n")
    password.chmod(0o600)
    nats = f"nats://omnibus:known-before@127.0.0.1:{port}"
    with (
        worker("dit", nats=nats, folder=tmp_path),
        worker("thinker", replicas=2, nats=nats, folder=tmp_path),
        head(tmp_path, "--stages", "", port=port),
    ):
        await all_up(nats, thinker=2, dit=1)
        assert wrong_answers(nats, "text,image", tmp_path) == {}


@contextmanager
def head(folder: Path, *words: str, port: int = 0) -> Iterator[Serving]:
    """Broker, orchestrator and front door, with some of the stages."""
    flags = ("--port", "0", "--nats-port", str(port))
    with serving("omni-tiny", *words, *flags, state_dir=folder / "state") as served:
        yield served


async def all_up(nats: str, **replicas: int) -> None:
    """Wait until so many replicas of each stage are up, and none of the others."""
    wanted = {"thinker": 0, "dit": 0, "talker": 0, "code2wav": 0, "clip": 0, **replicas}
    await eventually(lambda: replicas_up(nats) == wanted, START_WAIT, what=f"{wanted} up")
