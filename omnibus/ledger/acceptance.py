"""The shell of `admit()`: the one way in, for the front door, the Python client and raw requests alike."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from msgspec.structs import replace

from omnibus.broker.bucket import transact
from omnibus.errors import RequestConflict, RevisionConflict
from omnibus.ledger.performer import Performer
from omnibus.ledger.records import StoredRecord
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.requests.admission import attach_effects, check_same
from omnibus.requests.advance import end_again, entry_tasks, redrive
from omnibus.requests.record import Record

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Admitted:
    """An accepted request."""

    record: Record
    """The record in the ledger at that moment."""
    attached: bool
    """The same request had been submitted before."""


async def admit(performer: Performer, record: Record) -> Admitted:
    """Admit the request of a new record; accepted when this returns.

    Idempotent: the same request under the same id attaches to the running one, or to its answer. Raises RequestConflict
    when the id was used for another request, and BrokerError; then the caller cannot know whether it was accepted,
    and may call again with the same id.
    """

    async def attempt() -> Admitted:
        try:
            revision = await performer.open(record)
        except RevisionConflict:
            existing = await performer.ledger.read(record.rid)
            if existing is None:
                raise  # it expired between our create and our read
            return await _resolve_conflict(performer, existing, record)
        # Invariant: never ahead of the record. Under an id that is taken, a stranger's task would run.
        await performer.perform(entry_tasks(replace(record.ticket, revision=revision), record.ticket.created))
        log.debug(LogEvent.REQUEST_ACCEPTED, request=record.rid, pipeline=record.ticket.pipeline)
        return Admitted(record, attached=False)

    # Invariant: the input is discarded when all is decided, and by no attempt. The record in the way may lapse before the
    # next attempt, which then creates one that refers to this input.
    try:
        admitted = await transact(attempt, f"the record of request {record.rid!r}")
    except RequestConflict:
        await performer.discard_input(record)
        raise
    if admitted.record.ticket.request != record.ticket.request:
        await performer.discard_input(record)
    return admitted


async def _resolve_conflict(performer: Performer, existing: StoredRecord, mine: Record) -> Admitted:
    """Attach to a request that is there: another's, or that of this very call, whose acknowledgement was lost."""
    record = existing.record
    if record.nonce != mine.nonce:
        performer.queue.cancel_deadline(mine.rid, mine.nonce)
    check_same(record, mine)
    await performer.perform(attach_effects(record))
    if not record.state.terminal:
        await _recheck(performer, existing, is_queued=await performer.queue.anything_queued(mine.rid))
    log.debug(LogEvent.REQUEST_ATTACHED, request=mine.rid, state=record.state.value)
    return Admitted(record, attached=record.state.terminal or record.nonce != mine.nonce)


async def _recheck(performer: Performer, existing: StoredRecord, *, is_queued: bool) -> None:
    """Remove what was published again when the request has ended meanwhile; run it again when it is open with nothing queued.

    Its admitter has died then, and dedupe remembers its tasks.
    """
    latest = await performer.ledger.read_latest(existing.record.rid)
    if latest is not None and latest.record.state.terminal:
        await performer.perform(end_again(latest.record))
    elif latest is not None and not is_queued:
        with suppress(RevisionConflict):  # then the first admission has something queued
            await performer.decided(redrive(existing.record), existing)
