"""How long killed tasks waited until somebody else began them: pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from tests.chaos.evidence import Evidence
from tests.chaos.history import Ended, Event, Fault


def restarts(events: Iterable[Event], evidence: Evidence) -> tuple[float, ...]:
    """For every task in the hands of whoever was killed: seconds from the kill to the start of the execution that counted.

    A task whose counted execution began before the kill had finished by then, or its result was under way: it waited for
    nobody. When a task is killed again, the last kill before its start counts.
    """
    faults = [event for event in events if isinstance(event, Fault)]
    kills: dict[tuple[str, int], list[float]] = {}
    for fault in faults:
        for task in fault.held:
            kills.setdefault(task, []).append(fault.at)
    waits = []
    for (rid, stage_id), times in kills.items():
        entry = evidence.ledger.get(rid)
        started = entry.started.get(stage_id) if entry is not None else None
        before = [at for at in times if started is not None and at <= started]
        if started is not None and before:
            waits.append(started - max(before))
    return tuple(sorted(waits))


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed; 0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def pause(events: Iterable[Event]) -> float:
    """The longest time, from the first fault on, in which no client was told an end while some waited for one; seconds."""
    history = tuple(events)
    first = min((event.at for event in history if isinstance(event, Fault)), default=None)
    if first is None:
        return 0.0
    told = sorted(event.at for event in history if isinstance(event, Ended) and event.at > first)
    return max((later - earlier for earlier, later in pairwise([first, *told])), default=0.0)
