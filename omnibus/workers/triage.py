"""What to do with a delivery, and with a failed one: pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import msgspec

from omnibus.errors import AttemptsExhausted, EngineDead, EngineError, OmnibusError
from omnibus.wire.envelope import Task
from omnibus.wire.failure import Failure

FIRST_RETRY_DELAY = 0.1
"""Seconds before a failed task is delivered again; doubles with every attempt."""
LONGEST_RETRY_DELAY = 5.0


class Disposition(Enum):
    """What a replica does with a task that it received."""

    RUN = auto()
    DROP = auto()
    """Its request has ended, or ends by its deadline: acknowledge it and go on."""
    EXHAUSTED = auto()
    """Delivered beyond the limit: fail the request without running it."""
    REROUTE = auto()
    """Directed to this replica, and tried here before: the next attempt is anybody's."""
    RUN_ISOLATED = auto()
    """At its last attempt: run it, and beside it none that is at its last, too."""
    PUT_BACK = auto()
    """At its last attempt, while another one that is runs here: for a replica, or a time, where none does."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Give the task back to the queue."""

    delay: float
    """Seconds before it is delivered again."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the request."""

    failure: Failure
    dead: bool
    """Keep it as a dead letter: its attempts are used up."""


def triage(
    task: Task, *, delivered: int, cancelled: bool, now: float, stuck: bool = False, has_last_attempt: bool = False
) -> Disposition:
    """Whether to run a task at its `delivered`-th attempt; `now` is seconds since the epoch.

    `stuck`: it waits on a replica's own lane, and this is not its first delivery there. `crowded`: a task at its last attempt
    runs here.

    Invariant: tasks at their last attempts do not share a replica. One that kills whoever runs it would take those with it
    that had been beside it before: what a dead replica had in hand comes back together.
    """
    if cancelled or task.ticket.deadline <= now:
        return Disposition.DROP
    if delivered > task.ticket.max_attempts:
        return Disposition.EXHAUSTED
    if stuck:
        return Disposition.REROUTE
    if 1 < delivered == task.ticket.max_attempts:
        return Disposition.PUT_BACK if has_last_attempt else Disposition.RUN_ISOLATED
    return Disposition.RUN


def after_failure(error: Exception, task: Task, *, delivered: int, replica: str) -> Retry | GiveUp:
    """What a failed attempt means. Errors outside our tree count as the engine's.

    A lost payload is not tried again here: only a new run of the whole request can make it anew.
    """
    ours = error if isinstance(error, OmnibusError) else EngineError(f"{type(error).__name__}: {error}")
    again = isinstance(ours, EngineError) and ours.retryable
    if again and delivered < task.ticket.max_attempts:
        # A dead engine's task goes to another replica: there is nothing to wait for.
        dead = isinstance(ours, EngineDead)
        return Retry(0.0 if dead else min(FIRST_RETRY_DELAY * 2 ** (delivered - 1), LONGEST_RETRY_DELAY))
    return GiveUp(_failure(ours, task, replica, attempts=delivered if again else 0), dead=again)


def exhausted(task: Task, *, delivered: int, replica: str) -> GiveUp:
    """The end of a task whose last allowed attempt left no word."""
    limit = task.ticket.max_attempts
    error = AttemptsExhausted(f"none of {limit} attempts at stage {task.stage_id} finished: each replica died or hung")
    return GiveUp(_failure(error, task, replica, attempts=delivered - 1), dead=True)


def _failure(error: OmnibusError, task: Task, replica: str, *, attempts: int) -> Failure:
    known = Failure.of(error, stage_id=task.stage_id, replica=replica)
    return msgspec.structs.replace(known, attempts=attempts)
