"""EngineCore does not outlive the replica that started it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from omnibus.child_process import start_child
from tests.support import tiny_checkpoints
from tests.support.processes import children_of, is_running
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e


async def test_engine_core_ends_when_its_replica_is_killed(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoints.make_llm(tmp_path / "llm", tokenizer=False)
    command = [sys.executable, "-m", "tests.support.vllm_replica", str(checkpoint)]
    replica = await start_child(*command, stdout=subprocess.PIPE)
    assert replica.stdout is not None
    async with asyncio.timeout(100):
        while (line := await replica.stdout.readline()).strip() != b"ready":
            assert line, "the replica ended before it served"
    cores = children_of(replica.pid, "EngineCore")
    assert cores

    replica.send_signal(signal.SIGKILL)

    await eventually(lambda: not any(is_running(pid) for pid in cores), 5)
    await replica.wait()
    replica.close()
