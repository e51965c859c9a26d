"""Costs fitted to the measured CPU of a request, and the measured points that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.scale.cluster import Cluster, Outcome, Shape
from bench.scale.costs import ROLES, Costs

_CORES, _WIDTH = 2, 64
_FITTED = 6
"""Rounds after which nothing changes any more."""
SLEEP = Shape(stages=3, slots=1, latency=0.05, orchestrators=2, cores=_CORES)
"""`bench.scaling`."""


@dataclass(frozen=True, slots=True)
class Point:
    """One measured figure beside the simulated one."""

    name: str
    measured: float
    simulated: float

    @property
    def error(self) -> float:
        """Part of the measured figure by which the simulated one is off."""
        return self.simulated / self.measured - 1


def fitted(measured: Mapping[str, Any], seed: int = 1, requests: int = 600) -> Costs:
    """Find the costs with which the simulated CPU of a request, idle and busy, is the measured one."""
    wanted: Mapping[str, float] = measured["hops"]["cpu_ms"]
    fan_out = {name: microseconds / 1e6 for name, microseconds in measured["fan_out_us"].items()}
    costs = Costs(**{role: wanted[role] / 1e4 for role in ROLES}, wake=2.0, **fan_out)
    for _ in range(_FITTED):
        busy, idle = _hops(costs, seed, _WIDTH, requests), _hops(costs, seed, 1, requests // 10)
        each = {role: getattr(costs, role) * wanted[role] / _cpu_ms(busy)[role] for role in ROLES}
        total = sum(_cpu_ms(idle).values()) + _cpu_ms(idle)["replica"]  # there are two of those
        costs = replace(costs, **each, wake=costs.wake * measured["hops"]["idle_cpu_ms"] / total)
    return costs


def points(measured: Mapping[str, Any], costs: Costs, seed: int = 1, requests: int = 600) -> list[Point]:
    """Figures that the costs were not fitted to."""
    hops, found = measured["hops"], []
    ends: bool = measured["worker_ends"]
    for mode in ("orchestrator", "direct"):
        idle = _hops(costs, seed, 1, requests // 10, direct=mode == "direct", ends=ends)
        busy = _hops(costs, seed, _WIDTH, requests, direct=mode == "direct", ends=ends)
        found += [
            Point(f"hops, {mode}: p50 with one in flight, ms", hops["p50_ms"][mode], idle.latency(50) * 1000),
            Point(f"hops, {mode}: requests/s with 64 in flight", hops["rate"][mode], busy.rate),
        ]
    rates = {count: scaled(costs, seed, int(count)).rate for count in measured["scaling"]}
    first = next(iter(rates.values()))
    found += [
        Point(f"scaling: rate with {count} replicas a stage beside one", share, rates[count] / first)
        for count, share in measured["scaling"].items()
        if share != 1.0
    ]
    return found


def scaled(costs: Costs, seed: int, replicas: int) -> Outcome:
    """The load of `bench.scaling`, by the replicas of a stage."""
    shape = replace(SLEEP, replicas=replicas)
    return Cluster(shape, costs, seed).load(3 * shape.stages * replicas, 60 * replicas)


def _hops(
    costs: Costs, seed: int, in_flight: int, requests: int, *, direct: bool = False, ends: bool = False
) -> Outcome:
    return Cluster(Shape(cores=_CORES, direct=direct, worker_ends=ends), costs, seed).load(in_flight, requests)


def _cpu_ms(outcome: Outcome) -> dict[str, float]:
    return {role: seconds / len(outcome.latencies) * 1000 for role, seconds in outcome.used.items()}
