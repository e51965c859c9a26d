"""The end of an engine's own process: noticed at once, busy or idle, and its tasks run elsewhere."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.errors import EngineDead
from omnibus.pipeline.spec import StageSpec
from tests.support.processes import children_of
from tests.support.stage_bench import StageBench, stage_bench, up
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
SILENT_FOR = 30.0
"""Heartbeat timeout: neither a heartbeat, every sixth of it, nor a lease can be what tells of a death here."""
AT_ONCE = 0.5
ENGINES = {
    "sim": {"engine": "sim", "engine_args": {"subprocess": True, "hang_on": {"rid": "."}}},
    "python": {"engine": "python", "model": "tests.support.engine_with_child:Answering", "engine_args": {}},
}


def stage_of(bench: StageBench, engine: str, slots: int = 4) -> StageSpec:
    return replace(bench.stage, slots=slots, **ENGINES[engine])


def kill_child() -> float:
    """Kill the one process that this one has started since, and say when."""
    (child,) = children_of(os.getpid(), "read")
    os.kill(child, signal.SIGKILL)
    return time.monotonic()


@pytest.mark.parametrize("engine", ENGINES)
async def test_idle_replica_ends_at_once_when_its_engines_process_is_killed(
    connection: Connection, pipeline: str, engine: str
) -> None:
    async with stage_bench(connection, pipeline, heartbeat_timeout=SILENT_FOR) as bench:
        async with up(bench, stage_of(bench, engine)) as (dying, running):
            killed = kill_child()
            await eventually(running.done)
            assert time.monotonic() - killed < AT_ONCE
        with pytest.raises(EngineDead, match="process ended"):
            running.result()
        assert dying.record.status == "down"


@pytest.mark.parametrize("engine", ENGINES)
async def test_task_runs_elsewhere_at_once_when_its_engines_process_is_killed(
    connection: Connection, pipeline: str, engine: str
) -> None:
    """And its attempts are counted: none of them goes to the dead engine's free slots, or is forgotten."""
    async with stage_bench(connection, pipeline, heartbeat_timeout=SILENT_FOR, max_attempts=2) as bench:
        healthy = replace(bench.stage, engine_args={"hang_on": {"rid": ".", "attempts": [1]}})
        async with up(bench, stage_of(bench, engine)) as (dying, _):
            await bench.submit("a", prompt="hang")
            await eventually(lambda: len(dying._claims))
            async with up(bench, healthy):
                killed = kill_child()
                result = await bench.result("a")
                assert time.monotonic() - killed < AT_ONCE
                assert result.replica != dying.record.replica
                await bench.all_done()


async def test_task_is_tried_elsewhere_at_once_when_its_engine_says_that_it_is_dead(
    connection: Connection, pipeline: str
) -> None:
    """It says so by failing the job, before anything else tells."""
    async with stage_bench(connection, pipeline, heartbeat_timeout=SILENT_FOR, max_attempts=2) as bench:
        async with up(bench, bench.stage) as (dying, running):
            dying._engine.generate = _fail  # type: ignore[assignment,method-assign]
            started = time.monotonic()
            await bench.submit("a")
            await eventually(running.done)
            async with up(bench, bench.stage):
                await bench.result("a")
        assert time.monotonic() - started < 2 * AT_ONCE


async def _fail(_job: object) -> AsyncIterator[object]:
    raise EngineDead("the device is lost")
    yield
