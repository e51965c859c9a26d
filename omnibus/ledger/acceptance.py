"""The shell of `admit()`: the one way in, for the front door, the Python client and raw requests alike."""

from __future__ import annotations

from dataclasses import dataclass

from omnibus.broker.bucket import transact
from omnibus.errors import RequestConflict, RevisionConflict
from omnibus.ledger.performer import Performer
from omnibus.ledger.records import StoredRecord
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.requests.admission import Resolution, admission_effects, attach_effects, resolve, timer_effects
from omnibus.requests.advance import redrive
from omnibus.requests.effects import CreateRecord
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
            await performer.perform(admission_effects(record))
        except RevisionConflict:
            existing = await performer.ledger.read(record.rid)
            if existing is None:
                raise  # it expired between our create and our read
            return await _resolve_conflict(performer, existing, record)
        log.debug(LogEvent.REQUEST_ACCEPTED, request=record.rid, pipeline=record.ticket.pipeline)
        return Admitted(record, attached=False)

    # Invariant: the input is discarded when all is decided, and by no attempt. The record in the way may lapse before the
    # next attempt, which then creates one that refers to this input.
    try:
        admitted = await transact(attempt, f"the record of request {record.rid!r}")
    except RequestConflict:
        await performer.discard_input(record)
        raise
    if admitted.record.nonce != record.nonce:
        await performer.discard_input(record)
    elif (
        admitted.attached and record.ticket.request.location is not None
    ):  # the end was before: it did not remove this one
        await performer.clear_orphans(record.rid)
    return admitted


async def _resolve_conflict(performer: Performer, existing: StoredRecord, mine: Record) -> Admitted:
    try:
        resolution = resolve(existing.record, mine)
    except RequestConflict:
        await performer.perform(timer_effects(existing.record))
        await _recheck(performer, existing)
        raise
    if resolution is Resolution.OURS and not existing.record.state.terminal:
        after_create = [effect for effect in admission_effects(mine) if not isinstance(effect, CreateRecord)]
        await performer.perform(after_create, existing.revision)
        await _recheck(performer, existing)
        return Admitted(existing.record, attached=False)
    await performer.perform(attach_effects(existing.record), existing.revision)
    is_queued = existing.record.state.terminal or await performer.queue.anything_queued(mine.rid)
    if await _recheck(performer, existing) and not is_queued:
        await _redrive(performer, existing)
    log.debug(LogEvent.REQUEST_ATTACHED, request=mine.rid, state=existing.record.state.value)
    return Admitted(existing.record, attached=True)


async def _recheck(performer: Performer, existing: StoredRecord) -> bool:
    """Whether a request is open still; one that ended meanwhile loses the timer and the tasks that were put back."""
    if existing.record.state.terminal:
        return False  # nothing was put back
    latest = await performer.ledger.read_latest(existing.record.rid)
    if latest is not None and latest.record.state.terminal:
        await performer.perform(timer_effects(latest.record))
    return latest is not None and not latest.record.state.terminal


async def _redrive(performer: Performer, existing: StoredRecord) -> None:
    """Nothing was queued for an open record: its admitter died, and dedupe remembers its tasks."""
    try:
        await performer.perform(redrive(existing.record), existing.revision)
    except RevisionConflict:
        return  # the first admission has something queued
    log.warning(LogEvent.REQUEST_REDRIVEN, request=existing.record.rid, run=existing.record.ticket.run + 1)
