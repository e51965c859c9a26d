"""The engine of vLLM-Omni's pipelines, in an environment of its own: every pipeline imported, two tiny ones served."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from PIL import Image

from tests.support.processes import children_of, is_running
from tests.support.served import command_line
from tests.support.waiting import eventually
from tests.support.zoo import DRAW, START, TALK, environment, import_pipeline
from tests.support.zoo_checkpoint import make_checkpoint
from tools.serving import Serving, serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
T = TypeVar("T")
PIPELINES = 64
APART = 25
"""Pipelines of which each stage is one of ours: whole payloads cross between them."""
FLAGS = ("--nats-port", "0", "--stage-init-timeout", str(START), "--init-timeout", str(START))
ABOVE, BELOW = (f"draw a red circle {where} a blue square" for where in ("above", "below"))
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
LOAD = "import sys; from omnibus.pipeline.loading import load_pipeline; from omnibus.workers.engines import create_engine\n"
CREATE = f"{LOAD}print(*(len([create_engine(one) for one in load_pipeline(file).stages]) for file in sys.argv[1:]))"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with environment(tmp_path_factory.mktemp("zoo")) as python:
        yield python


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("weights") / "tiny")


def run(*words: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command_line(*words), capture_output=True, text=True, check=False, timeout=600, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_engine_core(served: Serving) -> int:
    """Kill the process in which vLLM computes for one of the stages."""
    tree, found = [served.pid], []
    while tree:
        pid = tree.pop()
        tree += children_of(pid)
        found += children_of(pid, "StageEngineCore")
    assert found, "no EngineCore runs"
    os.kill(found[0], signal.SIGKILL)
    return found[0]


def through_kill_9(served: Serving, ask: Callable[[str], T], prompts: list[str]) -> list[T]:
    """The answers to prompts that are asked at once: after the first, an engine is killed, and the first is asked again."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        asked = [pool.submit(ask, prompt) for prompt in prompts]
        wait(asked, START, FIRST_COMPLETED)
        killed = kill_engine_core(served)
        asked.append(pool.submit(ask, prompts[0]))  # the others may have been answered by now
        answers = [one.result(START) for one in asked]
    asyncio.run(eventually(lambda: not is_running(killed), START))
    return answers


def painted(served: Serving, prompt: str) -> tuple[str, bytes]:
    """A text and the pixels of a picture, by the front door."""
    body = {"model": "tiny_draw", "messages": [{"role": "user", "content": prompt}], "modalities": ["text", "image"]}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=START)
    assert answer.status_code == 200, answer.text
    text, image = answer.json()["choices"][0]["message"]["content"]
    picture = Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].partition(",")[2])))
    assert picture.size == (64, 64)
    return text["text"], picture.tobytes()


def spoken(served: Serving, prompt: str) -> str:
    """The second stage's text, by the command line."""
    env = {**os.environ, "OMNIBUS_NATS_URL": served.nats_url}
    outputs = json.loads(run("submit", TURN.format(prompt), "--json", env=env))["outputs"]
    return next(one["text"] for one in outputs if one["stage"] == "talker")


def test_every_pipeline_of_the_registry_becomes_a_valid_file(zoo: Path, tmp_path: Path) -> None:
    said = run("pipeline", "import", "--all", "--python", str(zoo), "--output", str(tmp_path))
    assert said == f"{PIPELINES} pipelines written to {tmp_path}\n"
    files = sorted(str(file) for file in tmp_path.glob("*.yaml"))
    created = subprocess.run(
        [sys.executable, "-c", CREATE, *files], capture_output=True, text=True, check=False, timeout=120
    )
    assert created.returncode == 0, created.stderr
    stages = list(map(int, created.stdout.split()))
    assert (len(stages), sum(count > 1 for count in stages)) == (PIPELINES, APART)


def test_pipeline_runs_as_one_stage_through_kill_9_of_its_engine(zoo: Path, tmp_path: Path, checkpoint: Path) -> None:
    file = import_pipeline(zoo, tmp_path, DRAW, checkpoint, "--whole")
    with serving(str(file), "--port", "0", *FLAGS, state_dir=tmp_path / "state", timeout=START) as served:
        before = painted(served, ABOVE)
        others = [f"{BELOW} {number}" for number in range(4)]
        during, *_, after = through_kill_9(served, lambda prompt: painted(served, prompt), [ABOVE, *others])
    assert before == during == after
    assert before[0] != ""


def test_pipeline_runs_stage_by_stage_through_kill_9_of_an_engine(zoo: Path, tmp_path: Path, checkpoint: Path) -> None:
    file = import_pipeline(zoo, tmp_path, TALK, checkpoint)
    with serving(str(file), "--no-frontdoor", *FLAGS, state_dir=tmp_path / "state", timeout=START) as served:
        above = spoken(served, ABOVE)
        during, below, *_, after = through_kill_9(served, lambda prompt: spoken(served, prompt), [ABOVE, BELOW, ABOVE])
    assert above == during == after != ""
    assert above != below, "the thinker's states did not reach the talker, whose prompts are the same"
