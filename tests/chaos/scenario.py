"""Runs one nemesis against one arena, and judges what came of it."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tests.chaos.checker import Verdict, check
from tests.chaos.clients.crowd import Crowd
from tests.chaos.failover import pause, quantile
from tests.chaos.gathering import Gathering
from tests.chaos.history import Accepted, History
from tests.chaos.nemeses.table import Bounds, Nemesis
from tests.chaos.row import Battle
from tests.chaos.setups import Arena

WARM = 10
"""Operations before a nemesis strikes."""
AFTER = 10
"""Operations after its last fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One row."""

    nemesis: Nemesis
    verdict: Verdict
    seconds: float
    pause: float
    missed: tuple[str, ...] = ()
    """Bounds that were missed."""

    @property
    def clean(self) -> bool:
        return not self.complaints

    @property
    def complaints(self) -> tuple[str, ...]:
        return (*self.verdict.complaints, *self.missed)


async def fight(arena: Arena, nemesis: Nemesis, seed: int, *, keep: Path) -> Outcome:
    """One scenario from the first request to the verdict; the history of one that is not clean is kept in a folder."""
    started, history = time.monotonic(), History()
    gathering = await Gathering(arena).begin()
    trouble: list[str] = []
    try:
        await _fight(arena, nemesis, seed, history, trouble)
    except* Exception as group:  # noqa: BLE001 a client that fails is one of the findings
        trouble += [f"unfinished: {error!r}" for error in _leaves(group)]
    accepted = {event.rid for event in history.events if isinstance(event, Accepted)}
    verdict = check(history.events, await gathering.evidence(accepted), may_fail=nemesis.may_fail)
    waited = pause(history.events)
    verdict = replace(verdict, complaints=(*trouble, *verdict.complaints))
    missed = tuple(missed_bounds(nemesis.bounds, verdict, waited))
    outcome = Outcome(nemesis=nemesis, verdict=verdict, seconds=time.monotonic() - started, pause=waited, missed=missed)
    if not outcome.clean:
        history.save(keep / f"{nemesis.name}.jsonl")
    return outcome


def missed_bounds(bounds: Bounds, verdict: Verdict, waited: float) -> list[str]:
    """List the missed bounds; a bound on failovers is missed, too, when there was none."""
    times = verdict.failovers
    measured = {"p50": quantile(times, 0.5), "p99": quantile(times, 0.99), "longest": max(times, default=0.0)}
    limits = {"p50": bounds.p50, "p99": bounds.p99, "longest": bounds.longest}
    missed = [
        f"bound: failover {name} {measured[name]:.3f} s, may be {limit:g} s"
        for name, limit in limits.items()
        if limit is not None and measured[name] > limit
    ]
    if not times and any(limit is not None for limit in limits.values()):
        missed.append("bound: nobody who was struck had a task in hand")
    if bounds.pause is not None and waited > bounds.pause:
        missed.append(f"bound: nothing was answered for {waited:.3f} s, may be {bounds.pause:g} s")
    return missed


async def _fight(arena: Arena, nemesis: Nemesis, seed: int, history: History, trouble: list[str]) -> None:
    """Load and faults; what a nemesis could not do goes to `trouble`, and clients are told the ends of theirs all the same."""
    dice = random.Random(f"{seed} {nemesis.name}")
    label = f"{nemesis.name}-{seed}"
    async with Crowd(arena, history, arena.arguments, label=label) as crowd:
        try:
            await crowd.more(WARM)
            await nemesis.strike(Battle(arena, history, crowd, dice))
            await arena.cluster.wait_up()
            await crowd.more(AFTER)
        except Exception as error:  # noqa: BLE001 a nemesis that does not get to its end is one of the findings
            trouble.append(f"unfinished: {error!r}")
        crowd.finish()


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [
        leaf
        for error in group.exceptions
        for leaf in (_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    ]
