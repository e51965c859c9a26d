"""A model of what a preference for replicas on the producer's host would give: seeded, from measured costs of a hand-off.

Two stages on two hosts, whose replicas take tasks as the broker gives them: any that is free, or among the free ones first those
on the host that has the payload. Nobody waits for a host: a task that finds no free replica goes to the next that is.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Seconds, but for the counts and the load, which is a share of what the first stage can do."""

    near: float
    """A hand-off on one host."""
    far: float
    """The same between two."""
    service: float = 0.2
    load: float = 0.7
    replicas: int = 2
    """Replicas of each stage on each host."""
    requests: int = 20_000
    seed: int = 1


@dataclass(slots=True)
class _Stage:
    free: list[int]
    """The host of each free replica."""
    waiting: deque[tuple[int, int]] = field(default_factory=deque)
    """Each request that waits, by number, and the host that has its payload."""


def latencies(scene: Scene, *, prefers_host: bool) -> tuple[float, float]:
    """The mean time of a request, and the share of hand-offs between hosts; both ways meet the same requests."""
    chance, choice = random.Random(scene.seed), random.Random(scene.seed)
    hosts = [0, 1] * scene.replicas
    stages = [_Stage(list(hosts)), _Stage(list(hosts))]
    rate = scene.load * len(hosts) / (scene.service + scene.far)
    arrivals = list(itertools.accumulate(chance.expovariate(rate) for _ in range(scene.requests)))
    services = [[chance.expovariate(1 / scene.service) for _ in stages] for _ in arrivals]
    events = [(at, number, 0, -1) for number, at in enumerate(arrivals)]  # when, which, to which stage, from which host
    taken, far = list[float](), list[bool]()

    def start(now: float, stage: int, number: int, source: int, host: int) -> None:
        moved = 0.0
        if stage:
            far.append(source != host)
            moved = scene.far if source != host else scene.near
        heapq.heappush(events, (now + moved + services[number][stage], number, stage + 1, host))

    while events:
        now, number, stage, source = heapq.heappop(events)
        if stage:  # the replica that it comes from is free
            before = stages[stage - 1]
            if before.waiting:
                start(now, stage - 1, *before.waiting.popleft(), source)
            else:
                before.free.append(source)
        if stage == len(stages):
            taken.append(now - arrivals[number])
        elif free := stages[stage].free:
            near = [host for host in free if host == source] if prefers_host else []
            host = choice.choice(near or free)
            free.remove(host)
            start(now, stage, number, source, host)
        else:
            stages[stage].waiting.append((number, source))
    return mean(taken), mean(far)


def rows(near: float, far: float, loads: Sequence[float]) -> Iterator[dict[str, float]]:
    """Compare both ways of choosing at each load; milliseconds."""
    for load in loads:
        scene = Scene(near=near, far=far, load=load)
        (any_host, far_any), (same_host, far_same) = (latencies(scene, prefers_host=way) for way in (False, True))
        yield {
            "load": load, "ms": round(1000 * any_host, 1), "ms_preferring": round(1000 * same_host, 1),
            "gain": round(1 - same_host / any_host, 3), "far": round(far_any, 2), "far_preferring": round(far_same, 2),
        }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--near", type=float, default=17.0, help="milliseconds of a hand-off on one host")
    parser.add_argument("--far", type=float, default=75.0, help="the same between two hosts")
    given = parser.parse_args()
    for row in rows(given.near / 1000, given.far / 1000, (0.3, 0.6, 0.8, 0.9)):
        print(json.dumps(row))
