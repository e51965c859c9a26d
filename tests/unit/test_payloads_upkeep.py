"""Upkeep of shared memory: what stays is asked about, at little cost."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

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


async def test_sweep_costs_little_when_many_requests_have_something_in_memory() -> None:
    full: Any = Full([f"{number:032x}" for number in range(20_000)])
    upkeep = MemoryUpkeep(full, full, full)
    upkeep._asked = {f"{number:032x}": (math.inf, 60.0) for number in range(10_000, 30_000)}
    upkeep._asked |= dict.fromkeys(full.requests, (math.inf, 60.0))
    began = time.process_time()
    await upkeep._sweep()
    assert time.process_time() - began < 1.0
    assert set(upkeep._asked) == set(full.requests)
