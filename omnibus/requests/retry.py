"""An operator's retry of a request whose attempts were used up: the only way out of a terminal state. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from omnibus.errors import RequestConflict
from omnibus.requests.advance import entry_tasks
from omnibus.requests.effects import CreateRecord, Effect, SaveRecord, ScheduleDeadline
from omnibus.requests.record import DeadLetter, Record
from omnibus.requests.state import RequestState
from omnibus.wire.payload import Payload


def check_retry(letter: DeadLetter, record: Record | None) -> None:
    """Raises RequestConflict when a dead letter cannot be run again; `record` is what the ledger has under its id."""
    if record is None or (record.nonce == letter.record.nonce and record.state is RequestState.FAILED):
        return
    if record.nonce != letter.record.nonce:
        raise RequestConflict(f"the id {record.rid!r} is another request's by now")
    which = f"runs again already, as run {record.ticket.run}" if record.state is RequestState.OPEN else record.state
    raise RequestConflict(f"request {record.rid!r} is not failed: it {which}")


def retry(letter: DeadLetter, record: Record | None, payload: Payload, now: float) -> tuple[Effect, ...]:
    """Effects that run a dead letter again under its own id, with as much time as it had at first. Raises as `check_retry`.

    `payload` is its input, `now` seconds since the epoch. The timer is there before the record is open, so that it is never
    open without one; and again afterwards, since a late effect of the failed run may have removed the first.
    """
    check_retry(letter, record)
    again = _opened(record or letter.record, payload, now)
    timer = ScheduleDeadline(again.rid, again.ticket.deadline)
    write = CreateRecord(again) if record is None else SaveRecord(again)
    return (timer, write, timer, *entry_tasks(again.ticket, now))


def _opened(record: Record, payload: Payload, now: float) -> Record:
    again = record.next_run()
    allowed = record.ticket.deadline - record.ticket.created
    ticket = replace(again.ticket, request=payload, created=now, deadline=now + allowed)
    return replace(again, ticket=ticket, dead=True)
