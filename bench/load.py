"""Closed-loop load and what is read from it: the same for every system that a bench compares."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

Ask = Callable[[], Awaitable[None]]
"""One request, from its sending to its answer."""

REQUEST_TIMEOUT = 30.0
"""Seconds after which one request counts as lost, and the bench fails."""


@dataclass(frozen=True, slots=True)
class Round:
    """The figures of one round of one system."""

    p50: float
    """Median latency with one request in flight, seconds."""
    p99: float
    rate: float
    """Requests a second with many in flight."""


async def measure(ask: Ask, *, idle: int, busy: int, width: int) -> Round:
    """One round: `idle` requests one after the other, then `busy` requests with `width` in flight."""
    latencies = await one_in_flight(ask, idle)
    return Round(p50=median(latencies), p99=percentile(latencies, 99), rate=await many_in_flight(ask, busy, width))


async def one_in_flight(ask: Ask, count: int) -> list[float]:
    """Latencies of `count` requests, each sent when the one before is answered, seconds."""
    latencies = []
    for _ in range(count):
        started = time.perf_counter()
        async with asyncio.timeout(REQUEST_TIMEOUT):
            await ask()
        latencies.append(time.perf_counter() - started)
    return latencies


async def many_in_flight(ask: Ask, count: int, width: int) -> float:
    """Requests a second over `count` requests with `width` always in flight."""
    left = count

    async def asker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await ask()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(width):
            group.create_task(asker(), name=f"bench.asker.{number}")
    return count / (time.perf_counter() - started)


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which `percent` of 100 lie, of at least two values."""
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def middle(rounds: Sequence[Round]) -> Round:
    """The median of each figure over all rounds."""
    return Round(
        p50=median(each.p50 for each in rounds),
        p99=median(each.p99 for each in rounds),
        rate=median(each.rate for each in rounds),
    )
