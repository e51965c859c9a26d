"""An operator's retry of a request whose attempts were used up: the only way out of a terminal state. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from omnibus.errors import RequestConflict
from omnibus.pipeline.route import Route
from omnibus.requests.advance import entry_tasks, redrive
from omnibus.requests.effects import CreateRecord, Effect, SaveRecord, ScheduleDeadline
from omnibus.requests.record import DeadLetter, Record
from omnibus.requests.state import RequestState
from omnibus.wire.payload import Payload


@dataclass(frozen=True, slots=True)
class Renewal:
    """The parts of a new run that differ from the one that failed."""

    payload: Payload
    """The request, stored anew: what the failed run referred to may be gone before this one ends."""
    route: Route
    """Through the pipeline as it is deployed now."""
    max_attempts: int
    now: float
    """Seconds since the epoch."""


def check_retry(dead_letter: DeadLetter, record: Record | None) -> None:
    """Raises RequestConflict when a dead letter cannot be run again; `record` is what the ledger has under its id."""
    if dead_letter.record.ticket.resumable:
        raise RequestConflict(f"the input of request {dead_letter.record.rid!r} was open, and is gone; send it anew")
    if record is None:
        return
    if record.nonce != dead_letter.record.nonce:
        raise RequestConflict(f"the id {record.rid!r} is another request's by now")
    if record.state is RequestState.OPEN:
        raise RequestConflict(f"request {record.rid!r} runs again already: run {record.ticket.run} is open")
    if record.state is not RequestState.FAILED:
        raise RequestConflict(f"request {record.rid!r} is {record.state}; only a failed one runs again")


def retry(dead_letter: DeadLetter, record: Record | None, renewal: Renewal) -> tuple[Effect, ...]:
    """Effects that run a dead letter again under its own id, with as much time as it had at first. Raises as `check_retry`.

    The timer is there before the record is open, so that it is never open without one; and again afterwards, since a late
    effect of the failed run may have removed the first.
    """
    check_retry(dead_letter, record)
    again = _opened(record or dead_letter.record, renewal)
    timer = ScheduleDeadline(again.ticket)
    write = CreateRecord(again) if record is None else SaveRecord(again)
    return (timer, write, timer, *entry_tasks(again.ticket, renewal.now))


def resume(record: Record) -> tuple[Effect, ...]:
    """Effects for a run that was opened and of which nothing is queued: the operator's process died before it had published."""
    return (ScheduleDeadline(record.ticket), *redrive(record))


def _opened(record: Record, renewal: Renewal) -> Record:
    """Outputs of the failed run stay as long as the pipeline is the same: they are answered once."""
    again = record.next_run()
    old = record.ticket
    ticket = replace(
        again.ticket, request=renewal.payload, route=renewal.route, max_attempts=renewal.max_attempts,
        created=renewal.now, deadline=renewal.now + old.deadline - old.created,
    )  # fmt: skip
    outputs = again.outputs if renewal.route == old.route else {}
    return replace(again, ticket=ticket, outputs=outputs, dead=True)
