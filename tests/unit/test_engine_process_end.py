"""The wait for the end of processes that vLLM has started."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from omnibus.workers.engines.vllm.process_end import first_end
from tests.support.waiting import eventually

pytestmark = pytest.mark.unit


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    yield started
    for process in started:
        process.communicate()


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_wait_ends_when_one_of_several_processes_does(processes: list[subprocess.Popen[bytes]]) -> None:
    ended, sentinels = asyncio.Event(), [os.pidfd_open(process.pid) for process in processes]
    files = open_files()
    waiting = asyncio.create_task(first_end(sentinels, ended))
    await eventually(lambda: open_files() == files + 2)
    for sentinel in sentinels:
        os.close(sentinel)  # by their owner, while they are waited for
    assert not ended.is_set()
    processes[1].kill()
    await asyncio.wait_for(waiting, 20.0)
    assert ended.is_set()
    assert open_files() == files - 2


async def test_wait_ends_when_its_event_is_set_elsewhere_or_a_sentinel_is_closed_already() -> None:
    ended = asyncio.Event()
    waiting = asyncio.create_task(first_end((), ended))
    await asyncio.sleep(0)
    assert not waiting.done()
    ended.set()
    await asyncio.wait_for(waiting, 20.0)
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    await asyncio.wait_for(first_end([reading], closed := asyncio.Event()), 20.0)
    assert closed.is_set()
