"""`make soak MINUTES=30`: load at every door and a kill every few seconds; slopes, a verdict, and one line of JSON."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import httpx
import uvloop

from omnibus.errors import BrokerError
from omnibus.observability.logging import configure_logging
from tests.chaos import report
from tests.chaos.checker import Verdict, check
from tests.chaos.clients.crowd import Crowd
from tests.chaos.gathering import Gathering
from tests.chaos.history import Accepted, History
from tests.chaos.nemeses.processes import soak_acts
from tests.chaos.row import Battle
from tests.chaos.setups import Arena, chain
from tests.chaos.soak.sampling import ALLOWANCES, lifetimes, sample
from tests.chaos.soak.slopes import Sample, Trend, per_arrival, trend_of
from tests.support.processes import children_of

EVERY = 5.0
"""Seconds between two samples."""
SLICE = 300.0
"""Seconds of load between two verdicts: records of ended requests are kept for three times as long."""
CALM = 6.0
"""Longest time between two faults, seconds."""


def main() -> None:
    """Exit code 0 when every request ended once and nothing grows."""
    minutes, seed = float(os.environ.get("MINUTES", "30")), int(os.environ.get("CHAOS_SEED", "1"))
    configure_logging("error", "console")
    print(f"CHAOS_SEED={seed} MINUTES={minutes:g}", flush=True)
    verdicts, trends = uvloop.run(soak(60 * minutes, seed))
    for name, trend in sorted(trends.items()):
        print(_line(name, trend))
    complaints = [what for verdict in verdicts for what in verdict.complaints]
    print(*(f"    {what}" for what in complaints[:20]), sep="\n")
    grown = sorted(name for name, trend in trends.items() if not trend.is_flat)
    numbers = report.sums(verdicts, [value for verdict in verdicts for value in verdict.failovers])
    print(report.json_line({**numbers, "minutes": minutes, "series": len(trends), "growing": grown}), flush=True)
    sys.exit(1 if complaints or grown else 0)


async def soak(seconds: float, seed: int) -> tuple[list[Verdict], dict[str, Trend]]:
    """Load, faults and samples side by side; a verdict a slice, and every series' trend."""
    series: dict[str, list[Sample]] = defaultdict(list)
    verdicts: list[Verdict] = []
    arrivals: list[float] = []
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="omnibus-soak-", ignore_cleanup_errors=True) as folder:
        async with chain(Path(folder) / "chain") as arena:
            until, kept = time.monotonic() + seconds, await lifetimes(arena)
            watching = asyncio.create_task(_watch(arena, series, began), name="samples")
            while (left := until - time.monotonic()) > 0:
                verdict, accepted = await _slice(arena, min(left, SLICE), f"{seed}-{len(verdicts)}")
                verdicts.append(verdict)
                arrivals += [at - began for at in accepted]
            watching.cancel()
            await asyncio.wait({watching})
    for name, lifetime in kept.items():
        series[name] = per_arrival(series[name], sorted(arrivals), lifetime)
    return verdicts, {name: trend_of(found, ALLOWANCES[name.rpartition(" ")[2]]) for name, found in series.items()}


async def _slice(arena: Arena, seconds: float, seed: str) -> tuple[Verdict, list[float]]:
    """A part of the run that is judged by itself, while its records are still there; and when its requests were accepted."""
    gathering, history = await Gathering(arena).begin(), History()
    async with Crowd(arena, history, arena.arguments, label=f"soak-{seed}") as crowd:
        try:
            await _rage(Battle(arena, history, crowd, random.Random(f"soak {seed}")), time.monotonic() + seconds)
        finally:
            crowd.finish()
    accepted = {event.rid: event.at for event in history.events if isinstance(event, Accepted)}
    return check(history.events, await gathering.evidence(set(accepted))), list(accepted.values())


async def _rage(battle: Battle, until: float) -> None:
    while time.monotonic() < until:
        await asyncio.sleep(battle.random.uniform(CALM / 3, CALM))  # when the next one strikes
        await battle.random.choice(soak_acts())(battle)
        await battle.cluster.wait_up()


async def _watch(arena: Arena, series: dict[str, list[Sample]], began: float) -> None:
    lasting = _lasting(arena)
    while True:
        try:
            values = await sample(arena, lasting)
        except (BrokerError, httpx.TransportError):  # killed just now, or busy
            values = {}
        for name, value in values.items():
            series[name].append((time.time() - began, value))
        await asyncio.sleep(EVERY)  # the distance of two samples


def _lasting(arena: Arena) -> Mapping[str, int]:
    """Processes that nothing happens to: they would show what grows."""
    cluster = arena.cluster
    (painter,) = children_of(cluster.pid("worker-3"), "replica_main")
    named = ("frontdoor", "orchestrator", "worker-0", "worker-1", "worker-2", "worker-3")
    return {name: cluster.pid(name) for name in named} | {"painter": painter}


def _line(name: str, trend: Trend) -> str:
    slope, growth = f"{trend.per_hour:+14,.1f} /h", f"{trend.growth:+12,.1f} in the second half"
    return f"{name:24} mean {trend.mean:14,.2f}   slope {slope}   {growth}   {'flat' if trend.is_flat else 'GROWS'}"


if __name__ == "__main__":
    main()
