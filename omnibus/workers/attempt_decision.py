"""Decisions about an attempt at a task: whether a delivery is run, what follows from its result or its failure. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

import msgspec

from omnibus.errors import AttemptsExhausted, EngineDead, EngineError, InvalidRequest, OmnibusError
from omnibus.pipeline.route import Forwarding, Route, Target
from omnibus.requests.advance import linear_tasks, needs_event
from omnibus.requests.effects import PublishEvent, PublishTask
from omnibus.wire import codec, subjects
from omnibus.wire.envelope import VERSION, StageResult, Task
from omnibus.wire.failure import Failure
from omnibus.wire.payload import CARRIED_LIMIT

FIRST_RETRY_DELAY = 0.1
"""Seconds before a failed task is delivered again; doubles with every attempt."""
LONGEST_RETRY_DELAY = 5.0


class Disposition(Enum):
    """The ways in which a replica handles a received task."""

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


def decode_task(data: bytes, subject: str, stage_id: int) -> Task:
    """The task in a message; raises InvalidRequest when it is none, or not the one that its subject announces."""
    task: Task = codec.decode(data, Task)
    announced = subjects.parse_task(subject)
    if (task.ticket.rid, task.stage_id) != (announced.rid, announced.stage_id) or task.stage_id != stage_id:
        raise InvalidRequest(f"a task of {task.ticket.rid!r} for stage {task.stage_id} came on {subject!r}")
    if task.v > VERSION:
        raise InvalidRequest(f"the task has version {task.v}; this worker reads up to {VERSION}")
    try:
        task.ticket.route[stage_id]
    except KeyError:
        raise InvalidRequest(f"the route of {announced.rid!r} has no stage {stage_id}") from None
    return task


def disposition_of(
    task: Task,
    *,
    delivered: int,
    cancelled: bool,
    now: float,
    redelivered: bool = False,
    has_last_attempt: bool = False,
) -> Disposition:
    """Whether to run a task at its `delivered`-th attempt; `now` is seconds since the epoch.

    `redelivered`: it waits on a replica's own lane, and this is not its first delivery there. `has_last_attempt`: a task at
    its last attempt runs here.

    Invariant: tasks at their last attempts do not share a replica. One that kills every replica that runs it would take those
    with it that had been beside it before: what a dead replica had in hand comes back together.
    """
    if cancelled or task.ticket.deadline <= now:
        return Disposition.DROP
    if delivered > task.ticket.max_attempts:
        return Disposition.EXHAUSTED
    if redelivered:
        return Disposition.REROUTE
    if is_last_attempt(task, delivered):
        return Disposition.PUT_BACK if has_last_attempt else Disposition.RUN_ISOLATED
    return Disposition.RUN


def is_last_attempt(task: Task, delivered: int) -> bool:
    """Whether this attempt is the last one at a task that was tried before."""
    return 1 < delivered == task.ticket.max_attempts


def after_failure(error: OmnibusError, task: Task, *, delivered: int, replica: str) -> Retry | GiveUp:
    """Decide what follows from a failed attempt.

    A lost payload is not tried again here: only a new run of the whole request can make it anew.
    """
    again = isinstance(error, EngineError) and error.retryable
    if again and delivered < task.ticket.max_attempts:
        # A dead engine's task goes to another replica: there is nothing to wait for.
        dead = isinstance(error, EngineDead)
        return Retry(0.0 if dead else min(FIRST_RETRY_DELAY * 2 ** (delivered - 1), LONGEST_RETRY_DELAY))
    return GiveUp(_failure(error, task, replica, attempts=delivered if again else 0), dead=again)


def exhausted(task: Task, *, delivered: int, replica: str) -> GiveUp:
    """End a task whose last allowed attempt left no report."""
    limit = task.ticket.max_attempts
    error = AttemptsExhausted(f"none of {limit} attempts at stage {task.stage_id} finished: each replica died or hung")
    return GiveUp(_failure(error, task, replica, attempts=delivered - 1), dead=True)


def following(result: StageResult) -> Iterator[PublishTask | PublishEvent]:
    """List a worker's messages for a result, in order: the tasks of its direct edges, then the event, if it needs one."""
    yield from linear_tasks(result, forwarding=Forwarding.DIRECT)
    ticket, stage_id = result.ticket, result.stage_id
    if result.final is None and not needs_event(ticket.route, stage_id):
        return
    if all(_is_direct(ticket.route, target) for target in ticket.route[stage_id].whole_targets):
        result = msgspec.structs.replace(result, outputs={})  # nobody takes them from the event
    carried = CARRIED_LIMIT if result.outputs else 0
    result = msgspec.structs.replace(result, ticket=ticket.without_request(above=carried))
    yield PublishEvent(result, ticket.rid, stage_id, ticket.run)


def _is_direct(route: Route, target: Target) -> bool:
    return target.forwarding is Forwarding.DIRECT and not route[target.stage_id].is_join


def _failure(error: OmnibusError, task: Task, replica: str, *, attempts: int) -> Failure:
    known = Failure.of(error, stage_id=task.stage_id, replica=replica)
    return msgspec.structs.replace(known, attempts=attempts)
