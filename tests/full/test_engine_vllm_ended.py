"""EngineCore that is ended by others: noticed at once, and what it had begun is no result."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from omnibus.child_process import start_child
from tests.support import tiny_checkpoints
from tests.support.processes import children_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_half_a_text_is_no_result_when_engine_core_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    checkpoint = tiny_checkpoints.make_llm(tmp_path / "llm")
    command = [sys.executable, "-m", "tests.support.vllm_text", str(checkpoint)]
    process = await start_child(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        await said(process.stdout, b"began", 250)
        (core,) = children_of(process.pid, "EngineCore")
        os.kill(core, number)
        await said(process.stdout, b"EngineDead", 10)
        await said(process.stdout, b"gone", 5)
    finally:
        process.kill()
        await process.wait()
        process.close()


async def said(output: asyncio.StreamReader, word: bytes, seconds: float) -> None:
    """Return when the process says the word; whatever else libraries print is passed over."""
    async with asyncio.timeout(seconds):
        while (line := await output.readline()).strip() != word:
            assert line, f"the process ended before it said {word!r}"
