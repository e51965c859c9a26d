"""`omnibus serve` on sim stages, and the commands that talk to it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from omnibus.errors import StageStartError
from tests.support.memory import memory_of
from tests.support.processes import children_of, is_running
from tests.support.served import SIM_PIPELINE, command_line, omnibus, start, write_pipeline
from tests.support.terminal import Terminal
from tests.support.waiting import eventually
from tools.serving import Serving, serving

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One running `omnibus serve` for this module."""
    folder = tmp_path_factory.mktemp("serve")
    with serving(
        str(write_pipeline(folder)), "--port", "0", "--nats-port", "0", "--replicas", "1", state_dir=folder / "state"
    ) as running:
        yield running


def test_text_is_shown_and_files_are_saved_when_a_request_is_submitted(served: Serving, tmp_path: Path) -> None:
    done = omnibus("submit", "hello there", "--out", str(tmp_path), nats=served.nats_url)

    assert (done.returncode, done.stdout) == (0, "hello there\n")
    assert (tmp_path / "image-painter.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "audio-speaker.wav").read_bytes().startswith(b"RIFF")
    assert str(tmp_path / "image-painter.png") in done.stderr


def test_keys_stand_in_no_command_line_and_in_no_childs_environment(tmp_path: Path) -> None:
    flags = ("--port", "0", "--nats-port", "0", "--replicas", "1")
    keys = {"OMNIBUS_API_KEYS": "a-secret-key,admin:another-secret-key"}
    with serving(str(write_pipeline(tmp_path)), *flags, state_dir=tmp_path / "s", env=keys) as served:
        children = children_of(served.pid)
        assert len(children) >= 6, "nats-server, orchestrator, front door and three replicas"
        for pid in (served.pid, *children):
            assert b"secret-key" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        for pid in children:
            assert b"secret-key" not in Path(f"/proc/{pid}/environ").read_bytes()
        for key, status in (("a-secret-key", 200), ("another-secret-key", 200), ("guess", 401)):
            answer = httpx.get(f"{served.url}/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == status


def test_one_object_is_printed_when_json_is_wanted(served: Serving, tmp_path: Path) -> None:
    done = omnibus("submit", "-", "--json", "-m", "text", "-o", str(tmp_path), nats=served.nats_url, stdin="from stdin")

    report = json.loads(done.stdout)
    assert (done.returncode, done.stderr, report["state"]) == (0, "", "done")
    assert [output["text"] for output in report["outputs"]] == ["from stdin"]
    assert set(report["stages"]) == {"writer"}, "stages that nothing needs were run"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--rid", "reject-1"], 1, "engine_rejected"),
        (["--rid", "hang-1", "--deadline", "0.3"], 4, "deadline_exceeded"),
        (["-m", "video"], 2, "does not produce 'video'"),
        (["--request-id", "not a name"], 2, "rid must match"),
        (["--lane", "batch"], 2, "has no lane 'batch'"),
        (["world"], 2, 'put it in quotes, as in omnibus submit "hello world"'),
        (["-p", "nothing"], 2, "'nothing' is not deployed"),
        (["-p", "nothing.yaml"], 2, "cannot be read"),
        (["-o", "/proc/1/out"], 2, "saved under"),
        (["-o", "/etc/hostname/out"], 2, "image cannot be saved under"),
    ],
)
def test_status_and_message_say_why_when_a_request_does_not_end_well(
    served: Serving, words: list[str], status: int, says: str
) -> None:
    done = omnibus("submit", "hello", *words, nats=served.nats_url)
    assert done.returncode == status
    assert says in done.stderr
    assert "Traceback" not in done.stderr


async def test_request_is_cancelled_when_submit_is_interrupted(served: Serving, tmp_path: Path) -> None:
    submit = start("submit", "hello", "--rid", "hang-2", nats=served.nats_url, log=tmp_path / "log")
    await eventually(lambda: _state(served, "hang-2") == "open", 30.0)
    submit.send_signal(signal.SIGINT)
    assert submit.wait(10) == 130
    assert _state(served, "hang-2") == "cancelled"
    assert (tmp_path / "log").read_text().strip() == "request hang-2 is cancelled"


async def test_request_is_named_when_it_may_outlive_an_interrupted_submit(tmp_path: Path) -> None:
    with serving(
        str(write_pipeline(tmp_path)), "--no-frontdoor", "--nats-port", "0", state_dir=tmp_path / "state"
    ) as running:
        submit = start("submit", "hello", "--rid", "hang-8", nats=running.nats_url, log=tmp_path / "log")
        await eventually(lambda: _state(running, "hang-8") == "open", 30.0)
        (broker,) = children_of(running.pid, "nats-server")
        os.kill(broker, signal.SIGSTOP)
        try:
            submit.send_signal(signal.SIGINT)
            assert submit.wait(30) == 130
        finally:
            os.kill(broker, signal.SIGCONT)
    assert "request hang-8 may still run, until its deadline: omnibus cancel hang-8" in (tmp_path / "log").read_text()


async def test_submit_says_so_when_its_request_is_cancelled_elsewhere(served: Serving, tmp_path: Path) -> None:
    submit = start("submit", "hello", "--rid", "hang-3", nats=served.nats_url, log=tmp_path / "log")
    await eventually(lambda: _state(served, "hang-3") == "open", 30.0)
    cancelled = omnibus("cancel", "hang-3", "never-was", nats=served.nats_url)
    assert (cancelled.returncode, cancelled.stdout) == (2, "hang-3: cancelled\n")
    assert "never-was" in cancelled.stderr
    assert submit.wait(10) == 3


def test_stages_replicas_and_queues_are_listed_when_status_is_asked(served: Serving) -> None:
    status = json.loads(omnibus("status", "--json", nats=served.nats_url).stdout)
    assert [(stage["name"], stage["queued"]) for stage in status["stages"]] == [
        ("writer", 0), ("painter", 0), ("speaker", 0),
    ]  # fmt: skip
    assert all(replica["status"] == "up" for stage in status["stages"] for replica in stage["replicas"])
    table = omnibus("status", nats=served.nats_url).stdout
    assert "0 writer" in table
    assert " up " in table


def test_front_door_answers_when_serve_is_ready(served: Serving) -> None:
    assert httpx.get(f"{served.url}/ready").status_code == 200
    assert [model["id"] for model in httpx.get(f"{served.url}/v1/models").json()["data"]] == ["simple"]


async def test_child_is_started_again_when_it_is_killed(served: Serving) -> None:
    (orchestrator,) = children_of(served.pid, "orchestrator")
    os.kill(orchestrator, signal.SIGKILL)
    assert omnibus("submit", "hello again", "-m", "text", nats=served.nats_url).stdout == "hello again\n"
    await eventually(lambda: children_of(served.pid, "orchestrator") not in ([], [orchestrator]), 10.0)


async def test_running_request_is_answered_and_nothing_is_left_when_serve_is_stopped(tmp_path: Path) -> None:
    """A task that a replica finishes while it leaves becomes an answer through the orchestrator, which ends after it."""
    begun = threading.Event()
    with serving(
        str(write_pipeline(tmp_path)), "--port", "0", "--nats-port", "0", state_dir=tmp_path / "state"
    ) as running:
        processes = [running.pid, *children_of(running.pid)]
        assert len(processes) == 7  # itself, the broker, orchestrator, front door, three replicas
        asking = asyncio.create_task(asyncio.to_thread(_stream, running.url, begun))
        assert await asyncio.to_thread(begun.wait, 10.0)
        started = time.monotonic()
    assert [line for line in await asking if "error" in line or "finish_reason" in line][-1].count('"stop"') == 1
    assert time.monotonic() - started < 20.0
    await eventually(lambda: not any(is_running(pid) for pid in processes))
    assert not memory_of(processes), "the pools of replicas end with them"
    assert "Traceback" not in running.log.read_text()


async def test_nothing_is_left_when_serve_is_killed(tmp_path: Path) -> None:
    with serving(
        str(write_pipeline(tmp_path)), "--port", "0", "--nats-port", "0", state_dir=tmp_path / "state"
    ) as running:
        processes = [running.pid, *children_of(running.pid)]
        os.kill(running.pid, signal.SIGKILL)
    await eventually(lambda: not any(is_running(pid) for pid in processes), 10.0)


async def test_everything_is_killed_when_serve_is_interrupted_twice(tmp_path: Path) -> None:
    with serving(
        str(write_pipeline(tmp_path)), "--port", "0", "--nats-port", "0", state_dir=tmp_path / "state"
    ) as running:
        processes = [running.pid, *children_of(running.pid)]
        hanging = start("submit", "hello", "--rid", "hang", nats=running.nats_url, log=tmp_path / "submit.log")
        await eventually(lambda: _state(running, "hang") == "open", 30.0)
        started = time.monotonic()
        os.kill(running.pid, signal.SIGINT)
        await eventually(lambda: "replica.draining" in running.log.read_text(), 5.0)
        os.kill(running.pid, signal.SIGINT)
        await eventually(lambda: not any(is_running(pid) for pid in processes[1:]), 5.0)
    assert time.monotonic() - started < 20.0  # without waiting for the task that hangs
    hanging.kill()
    hanging.wait()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--stages", "9"], "has no stage '9'"),
        (["--nats", "nats://127.0.0.1:1"], "cannot reach NATS"),
        (["--nats", "http://elsewhere"], "http://elsewhere"),
    ],
)
def test_reason_is_one_line_when_serve_cannot_start(tmp_path: Path, flags: list[str], says: str) -> None:
    with (
        pytest.raises(StageStartError, match="was not ready") as caught,
        serving(str(write_pipeline(tmp_path)), "--nats-port", "0", "--port", "0", *flags, state_dir=tmp_path / "state"),
    ):
        pass
    assert says in caught.value.message
    assert "Traceback" not in caught.value.message


def test_model_is_named_when_it_cannot_be_found(tmp_path: Path) -> None:
    text = "name: bad\nstages:\n- {stage_id: 0, name: only, engine: python, model: 'nowhere:f', final_output: true, "
    file = write_pipeline(tmp_path, text + "final_output_type: text}\n")
    with (
        pytest.raises(StageStartError) as caught,
        serving(str(file), "--no-frontdoor", "--nats-port", "0", state_dir=tmp_path / "state", timeout=30),
    ):
        pass
    reason = caught.value.message.splitlines()[-1]
    assert "stage 'only': model 'nowhere:f'" in reason
    assert "cannot start" not in reason, "the last lines of the replica stand below each other"
    assert "Traceback" not in caught.value.message


def test_failure_is_told_in_sentences_when_it_is_piped(tmp_path: Path) -> None:
    """No JSON for people, no ten minutes of trying again, and what stays deployed is said."""
    (tmp_path / "unlucky.py").write_text(
        "class Stage:\n    def __init__(self):\n        raise RuntimeError('no luck')\n\n"
        "    def __call__(self, stage_input):\n        return ''\n"
    )
    text = "name: unlucky\nstages:\n- {stage_id: 0, name: only, engine: python, model: 'unlucky:Stage', "
    file = write_pipeline(tmp_path, text + "final_output: true, final_output_type: text}\n")
    done = subprocess.run(
        command_line("serve", str(file), "--port", "0", "--nats-port", "0", "--state-dir", str(tmp_path / "state")),
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    _, _, failure = done.stderr.rpartition("omnibus: not everything is up and only.0 has died 4 times: ")
    assert failure.startswith("stage 0 'only': 0 of 1 up\n")
    assert "RuntimeError: no luck" in failure
    assert not [line for line in failure.splitlines() if line.lstrip().startswith("{")]
    assert f"unlucky stays deployed, with its answers, in {tmp_path}/state" in done.stdout


def test_command_to_try_comes_before_the_last_line_when_all_is_up(tmp_path: Path) -> None:
    said: list[str] = []
    flags = ("--port", "0", "--nats-port", "0")
    with serving(str(write_pipeline(tmp_path)), *flags, state_dir=tmp_path / "state", say=said.append) as running:
        assert said[-1].startswith("try: omnibus submit ")
        command = shlex.split(said[-1].removeprefix("try: omnibus "))
        assert omnibus(*command, "-o", str(tmp_path), nats=running.nats_url).stdout == "hello\n"
        log = running.log.read_text()
    assert "/live" not in log, "our own probes are logged"
    assert log.count("broker.layout_changed") == 1


def test_command_to_try_works_when_the_broker_of_another_pipeline_is_used(served: Serving, tmp_path: Path) -> None:
    said: list[str] = []
    pipeline = write_pipeline(tmp_path, SIM_PIPELINE.replace("name: simple", "name: beside"))
    flags = ("--no-frontdoor", "--state-dir", str(served.log.parent))
    with serving(str(pipeline), *flags, state_dir=tmp_path / "unused", say=said.append):
        command = shlex.split(said[-1].removeprefix("try: omnibus "))
        assert omnibus(*command, "-o", str(tmp_path), nats="").stdout == "hello\n"
    omnibus("pipeline", "delete", "beside", "--force", nats=served.nats_url)


def test_a_file_is_refused_in_words_when_its_pipeline_is_not_deployed(served: Serving, tmp_path: Path) -> None:
    pipeline = write_pipeline(tmp_path, SIM_PIPELINE.replace("name: simple", "name: nowhere"))
    done = omnibus("submit", "-p", str(pipeline), "hello", nats=served.nats_url)
    assert done.returncode == 2
    assert "pipeline 'nowhere' is not deployed" in done.stderr


def test_parts_come_up_in_a_live_table_when_serve_has_a_terminal(tmp_path: Path) -> None:
    words = (
        "serve",
        str(write_pipeline(tmp_path)),
        "--port",
        "0",
        "--nats-port",
        "0",
        "--state-dir",
        str(tmp_path / "state"),
    )
    with Terminal(*words) as terminal:
        text = terminal.read_until("ready:", 60.0)
        terminal.interrupt()
        rest = terminal.read_until("stays deployed", 60.0)
        assert terminal.wait() == 0
    for row in ("orchestrator", "front door", "0 writer", "1 painter", "2 speaker"):
        assert row in text
    assert "up: " not in text, "lines and table say the same"
    assert re.search(r"\d\d:\d\d:\d\d \[", text), "the log has no time of day"
    assert not [line for line in (text + rest).splitlines() if line.startswith("{")]


def _stream(url: str, begun: threading.Event) -> list[str]:
    """The lines of an answer that takes a second; sets `begun` at the first one."""
    words = " ".join(["word"] * 200)
    chat = {"model": "simple", "messages": [{"role": "user", "content": words}], "modalities": ["text"], "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=chat, timeout=30.0) as answer:
        lines = []
        for line in answer.iter_lines():
            begun.set()
            lines.append(line)
    return lines


def _state(served: Serving, rid: str) -> str:
    done = omnibus("status", rid, "--json", nats=served.nats_url)
    return str(json.loads(done.stdout)["state"]) if done.returncode == 0 else ""
