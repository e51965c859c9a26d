"""Upkeep of shared memory: what stays is asked about, at little cost."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any, cast

import pytest

from omnibus.errors import BrokerUnavailable
from omnibus.payloads.upkeep import MemoryUpkeep

pytestmark = pytest.mark.unit


class Full:
    """A store, and the connection of its process, that has something of many requests."""

    def __init__(self, requests: list[str]) -> None:
        self.requests, self.clock = requests, self

    def now(self) -> float:
        return 0.0

    async def sweep(self, _now: float, _age: float) -> list[str]:
        return self.requests

    async def written(self) -> list[str]:
        return list(self.requests)

    def forget(self, rid: str, _run: int, _asked: float) -> None:
        self.requests.remove(rid)


class Orchestrator:
    """Answers that a request has ended, once `wanted` questions wait for an answer; or never, and the asker gives up."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.waiting, self.most, self.asked = wanted, 0, 0, 0
        self.answering = asyncio.Event()

    async def ask_orphans(self, _rid: str) -> int:
        self.asked += 1
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        if self.waiting == self.wanted:
            self.answering.set()
        try:
            async with asyncio.timeout(1.0):
                await self.answering.wait()
        except TimeoutError:
            raise BrokerUnavailable("no answer") from None
        finally:
            self.waiting -= 1
        return 1


async def test_sweep_costs_little_when_many_requests_have_something_in_memory() -> None:
    full: Any = Full([f"{number:032x}" for number in range(20_000)])
    upkeep = MemoryUpkeep(full, full, full)
    upkeep._asked = {f"{number:032x}": (math.inf, 60.0) for number in range(10_000, 30_000)}
    upkeep._asked |= dict.fromkeys(full.requests, (math.inf, 60.0))
    began = time.process_time()
    await upkeep._sweep()
    assert time.process_time() - began < 1.0
    assert set(upkeep._asked) == set(full.requests)


async def test_sweep_asks_many_questions_together_and_a_bounded_number_when_much_is_left() -> None:
    full: Any = Full([f"{number:032x}" for number in range(1000)])
    orchestrator: Any = Orchestrator(wanted=32)
    await MemoryUpkeep(full, full, orchestrator)._sweep()
    assert orchestrator.most == 32
    assert len(full.requests) == 1000 - 512


async def test_sweep_ends_at_the_first_questions_when_nobody_answers_and_the_next_asks_about_others() -> None:
    full: Any = Full([f"{number:032x}" for number in range(1000)])
    orchestrator: Any = Orchestrator(wanted=10_000)
    upkeep = MemoryUpkeep(full, full, orchestrator)
    await upkeep._sweep()
    assert orchestrator.asked == 32
    await upkeep._sweep()
    assert len(upkeep._asked) == orchestrator.asked == 64


async def test_what_is_stored_late_is_asked_about_once_more_when_its_process_leaves() -> None:
    """Its request may have ended while it was written, and nobody else knows of it."""
    full: Any = Full(["late", "lent"])
    await MemoryUpkeep(full, full, cast("Any", Orchestrator(wanted=2))).finish()
    assert full.requests == []
