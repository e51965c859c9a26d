"""How long killed tasks waited until somebody else began them: pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.chaos.evidence import Evidence
from tests.chaos.history import Ended, Event, Fault, Invoked


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
    """The longest time from a fault to the end of a request that was sent after it; 0 without faults.

    A fault after which nothing more was sent does not count.
    """
    history = tuple(events)
    invoked = {event.op: event.at for event in history if isinstance(event, Invoked)}
    ends = [(invoked[event.op], event.at) for event in history if isinstance(event, Ended)]
    waits = []
    for fault in history:
        if isinstance(fault, Fault):
            after = [ended for began, ended in ends if began >= fault.at]
            if after:
                waits.append(min(after) - fault.at)
    return max(waits, default=0.0)
