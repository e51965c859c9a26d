"""Processes whose number changes: those that leave end in order, and a place is taken again when it is free."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from omnibus.errors import StageStartError
from omnibus.workers.elastic_replicas import ElasticReplicas
from omnibus.workers.supervisor import FATAL_EXIT_CODE, ProcessSpec
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
CHILD = (
    "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('up', flush=True); signal.pause()"
)


def specs(count: int, code: str = CHILD) -> list[ProcessSpec]:
    return [ProcessSpec(name=f"s.{place}", argv=(sys.executable, "-S", "-c", code)) for place in range(count)]


@asynccontextmanager
async def running(replicas: ElasticReplicas) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(replicas.run(), name="elastic")
    try:
        yield task
    finally:
        replicas.stop()
        await asyncio.wait({task}, timeout=20.0)
        assert task.done()


async def test_number_follows_what_is_wanted_and_all_end_in_the_end() -> None:
    replicas = ElasticReplicas(specs(3), grace=10.0)
    async with running(replicas) as task:
        assert (replicas.running, replicas.instances) == (0, set())
        replicas.scale(2)
        both = await eventually(lambda: len(replicas.instances) == 2 and replicas.instances, 20.0)
        assert replicas.running == 2
        replicas.scale(9)
        await eventually(lambda: len(replicas.instances) == 3, 20.0, what="no more than there are specs")
        replicas.scale(1)
        assert replicas.running == 1
        await eventually(lambda: len(replicas.instances) == 1, 20.0)
        assert replicas.instances < both, "those that came last leave"
        replicas.scale(3)
        await eventually(lambda: len(replicas.instances) == 3, 20.0, what="places are taken again")
    assert replicas.instances == set()
    assert task.exception() is None


async def test_place_is_taken_when_its_process_has_ended_and_not_before() -> None:
    slow = CHILD.replace("sys.exit(0)", "(__import__('time').sleep(0.5), sys.exit(0))")
    replicas = ElasticReplicas(specs(1, slow), grace=10.0)
    async with running(replicas):
        replicas.scale(1)
        (first,) = await eventually(lambda: replicas.instances, 20.0)
        replicas.scale(0)
        replicas.scale(1)
        assert replicas.instances == {first}
        await eventually(lambda: replicas.instances and first not in replicas.instances, 20.0)


LEAVING = (
    "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
    "while not os.path.exists(sys.argv[1]): time.sleep(0.02)"
)
"""A child that ends in order, as one does that an operator ends, when its file is there."""


def leaving(folder: Path, count: int) -> list[ProcessSpec]:
    argv = (sys.executable, "-S", "-c", LEAVING)
    return [ProcessSpec(name=f"s.{place}", argv=(*argv, str(folder / f"s.{place}"))) for place in range(count)]


async def test_process_that_ended_for_good_is_not_started_again_and_another_only_when_it_is_wanted(
    tmp_path: Path,
) -> None:
    replicas = ElasticReplicas(leaving(tmp_path, 3), grace=10.0)
    async with running(replicas) as task:
        replicas.scale(2)
        await eventually(lambda: len(replicas.instances) == 2, 20.0)
        (tmp_path / "s.0").touch()
        await eventually(lambda: replicas.ended == 1, 20.0)
        (second,) = replicas.instances
        assert (replicas.running, second[:4]) == (1, "s.1-"), "nothing was started in its stead"
        replicas.scale(3)
        both = await eventually(lambda: len(replicas.instances) == 2 and replicas.instances, 20.0)
        assert {one[:4] for one in both} == {"s.1-", "s.2-"}
        replicas.scale(0)
        await eventually(lambda: not replicas.instances and not replicas.running, 20.0)
        replicas.scale(2)
        again = await eventually(lambda: len(replicas.instances) == 2 and replicas.instances, 20.0)
        assert {one[:4] for one in again} == {"s.1-", "s.2-"}, (
            "a place that is scaled down is taken again, no ended one"
        )
        assert not again & both
        for place in ("s.1", "s.2"):
            (tmp_path / place).touch()
        await asyncio.wait_for(task, 20.0)  # it ends with its last one
    assert replicas.instances == set()


async def test_process_that_could_never_start_ends_all_and_says_why() -> None:
    replicas = ElasticReplicas(
        specs(2, f"print('no checkpoint', flush=True); raise SystemExit({FATAL_EXIT_CODE})"), grace=10.0
    )
    async with running(replicas) as task:
        replicas.scale(1)
        with pytest.raises(StageStartError, match="no checkpoint"):
            await asyncio.wait_for(task, 20.0)
