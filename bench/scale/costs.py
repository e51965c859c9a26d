"""Measured costs, and the points that the simulation must reproduce: `measured.json`, of runs of the benches on one machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).with_name("measured.json")
ROLES = ("producer", "broker", "orchestrator", "replica")


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds of CPU."""

    producer: float
    """A message that the producer handles and that finds it at work; likewise the next three."""
    broker: float
    orchestrator: float
    replica: float
    wake: float
    """By how much a message costs more that finds a process idle."""
    delivery: float
    """The broker, one more listener of a message."""
    claim: float
    """A listener, an announcement of claims."""
    heartbeat: float
    """A listener, a replica's heartbeat."""


def measured() -> dict[str, Any]:
    """The results that are kept here."""
    found: dict[str, Any] = json.loads(MEASURED.read_text())
    return found


def renew(hops: Mapping[str, Any], scaling: Mapping[str, Any], fan_out: Mapping[str, float], source: str) -> None:
    """Keep the results of `bench.hops`, of `bench.scaling` (the lines that they end in) and of `fan_out.measure`."""
    used, figures = hops["detail"]["cpu_ms"]["orchestrator"], hops["figures"]
    replicas = [milliseconds for role, milliseconds in used.items() if role.startswith("replica")]
    rates = {name.removeprefix("rate_"): rate for name, rate in scaling["figures"].items() if name.startswith("rate_")}
    kept = {
        "source": source,
        "worker_ends": True,
        "hops": {
            "cpu_ms": {
                "producer": used["bench"], "broker": used["nats-server"], "orchestrator": used["orchestrator"],
                "replica": sum(replicas) / len(replicas),
            },
            "idle_cpu_ms": figures["orchestrator.idle_cpu_ms"],
            "p50_ms": {mode: figures[f"{mode}.p50_ms"] for mode in ("orchestrator", "direct")},
            "rate": {mode: figures[f"{mode}.rate"] for mode in ("orchestrator", "direct")},
        },
        "scaling": {count: rate / next(iter(rates.values())) for count, rate in rates.items()},
        "fan_out_us": dict(fan_out),
    }  # fmt: skip
    MEASURED.write_text(json.dumps(kept, indent=2) + "\n")
