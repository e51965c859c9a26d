"""`omnibus demo` and `make demo`: everything from nothing, graded, and nothing left."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.memory import memory_of, memory_of_the_dead
from tests.support.processes import children_of, is_running
from tests.support.served import command_line
from tests.support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def begins(file: str, magic: bytes) -> bool:
    return Path(file).read_bytes().startswith(magic)


async def test_demo_is_right_and_leaves_nothing_when_it_ends(tmp_path: Path) -> None:
    before = memory_of_the_dead()
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "tools.demo", "--out", str(tmp_path)],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip

    report = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, report["image_ok"], report["audio_ok"]) == (0, True, True), done.stderr
    assert report["text_ok"]
    assert report["text"] == "red circle left blue square"
    assert done.stdout.splitlines()[0] == report["text"], "the text was not streamed"
    assert begins(report["image"], b"\x89PNG")
    assert begins(report["audio"], b"RIFF")
    await eventually(lambda: memory_of_the_dead() <= before, 30.0)  # those of tests beside this one are swept by then


async def test_demo_leaves_nothing_when_it_is_interrupted(tmp_path: Path) -> None:
    demo = _start(tmp_path)
    try:
        await eventually(lambda: len(_descendants(demo.pid)) >= 5, 60.0)  # broker and four replicas, whose engines load
        processes = _descendants(demo.pid)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
    finally:
        demo.kill()
        demo.wait()
    await eventually(lambda: not any(is_running(pid) for pid in processes))
    assert not memory_of(processes)


def _start(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command_line("demo", "--out", str(folder)), stdout=log, stderr=log)


def _descendants(pid: int) -> list[int]:
    children = children_of(pid)
    return [*children, *(below for child in children for below in _descendants(child))]
