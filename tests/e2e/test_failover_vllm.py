"""vLLM's EngineCore killed under a replica that works: noticed at once, and the task runs elsewhere."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.errors import EngineDead
from omnibus.workers.engines import create_engine
from omnibus.workers.replica import Replica, ReplicaOptions
from tests.support import tiny_checkpoints
from tests.support.processes import children_of
from tests.support.stage_bench import stage_bench
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.e2e,
    # vLLM and torch use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*torch.distributed.reduce_op.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]


async def test_task_runs_elsewhere_at_once_when_the_engine_core_is_killed(
    connection: Connection, pipeline: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a heartbeat of 20 s and no further request: only the process's end can tell."""
    checkpoint = tiny_checkpoints.make_llm(tmp_path / "llm", tokenizer=True)
    async with stage_bench(connection, pipeline, heartbeat_timeout=120.0, max_attempts=2) as bench:
        stage = replace(bench.stage, engine="vllm", model=str(checkpoint), engine_args={})
        replica = Replica(connection, bench.spec, stage, ReplicaOptions(grace=0.1), engine=create_engine(stage))
        running = asyncio.create_task(replica.run())
        await eventually(lambda: running.done() or replica.record.status == "up", 100, what="the replica is up")
        assert not running.done(), running.exception()
        async with bench.replica() as other:  # a `sim`, which nothing is left for: the first has more slots
            await other._gate.pause("abort")  # type: ignore[arg-type]
            (core,) = children_of(os.getpid(), "EngineCore")
            os.kill(core, signal.SIGSTOP)  # it holds what it gets, as a long generation does
            await bench.submit("a", prompt="draw a red circle")
            await eventually(lambda: len(replica._claims))
            await other._gate.resume()
            os.kill(core, signal.SIGKILL)
            killed = time.monotonic()
            result = await bench.result("a")
            seconds = time.monotonic() - killed
            await eventually(running.done, 30, what="the replica has ended")
        assert result.replica == other.record.replica
        assert seconds < 1.0
        assert isinstance(running.exception(), EngineDead)
    caplog.clear()  # the traceback that vLLM logs holds the dead engine
    replica = running = None  # type: ignore[assignment]
    gc.collect()  # here, where the warnings of what a dead core leaves are known
