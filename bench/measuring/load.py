"""Closed-loop load: the same for every system that a bench compares."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

Ask = Callable[[], Awaitable[object]]
"""One request, from its sending to its answer."""

REQUEST_TIMEOUT = 60.0
"""Seconds after which one request counts as lost, and the bench fails."""


@dataclass(frozen=True, slots=True)
class Load:
    """The observations of a load."""

    latencies: Sequence[float]
    """Seconds of each request."""
    seconds: float
    """From the first sending to the last answer."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds

    @property
    def p50_ms(self) -> float:
        return median(self.latencies) * 1000

    @property
    def p99_ms(self) -> float:
        return percentile(self.latencies, 99) * 1000


async def one_in_flight(ask: Ask, count: int) -> Load:
    """Send `count` requests, each when the one before is answered."""
    return await many_in_flight(ask, count, 1)


async def many_in_flight(ask: Ask, count: int, width: int) -> Load:
    """Send `count` requests with `width` of them always in flight."""
    return await by_clients([ask] * width, count)


async def by_clients(clients: Sequence[Ask], count: int) -> Load:
    """Send `count` requests, each client the next one when its last is answered."""
    left, latencies = count, []

    async def client(ask: Ask) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            sent = time.perf_counter()
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await ask()
            latencies.append(time.perf_counter() - sent)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number, ask in enumerate(clients):
            group.create_task(client(ask), name=f"bench.client.{number}")
    return Load(latencies, time.perf_counter() - started)


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which `percent` of 100 lie."""
    return quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]
