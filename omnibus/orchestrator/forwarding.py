"""One event: read what is needed, decide, perform, acknowledge."""

from __future__ import annotations

import secrets
from functools import cache

from omnibus.broker.connection import Connection
from omnibus.broker.delivery import Delivery
from omnibus.errors import InvalidRequest, Unreadable
from omnibus.ledger.performer import Performer
from omnibus.ledger.records import StoredRecord
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.requests.admission import bury, lapse
from omnibus.requests.advance import advance, fail, linear_tasks, needs_record
from omnibus.requests.cancellations import Cancellations
from omnibus.requests.record import OPEN_TTL
from omnibus.wire import codec, subjects
from omnibus.wire.envelope import DeadlinePassed, Event, StageFailed, StageResult, event_rid
from omnibus.wire.failure import Failure
from omnibus.wire.names import is_name

ADMISSION = 60.0
"""Seconds past a deadline in which its request may still be on the way into the ledger: every step of that is retried."""
_RECHECK_INTERVAL = 1.0

log = get_logger(__name__)


class Forwarder:
    """Handles the events of one pipeline."""

    def __init__(self, performer: Performer, stopped: Cancellations, connection: Connection) -> None:
        self._performer, self._stopped, metrics = performer, stopped, connection.metrics
        self._connection = connection
        self._counter = cache(lambda kind, outcome: metrics.events.labels(performer.pipeline, kind, outcome))

    async def handle(self, delivery: Delivery) -> bool:
        """Handle one event; False when it was put back. Raises BrokerError, and Unreadable for what is no event.

        A deadline that comes before its record is put back: dropped, it would leave the request open for ever.
        """
        event = _decode(delivery)
        if await self._precedes_record(event):
            await delivery.nak(_RECHECK_INTERVAL)
            self._count(delivery, "retried")
            return False
        tracing = self._connection.tracing
        if tracing.provider is None or not isinstance(event, StageResult | StageFailed):
            await self._advance(event)
        else:
            about = {"omnibus.pipeline": self._performer.pipeline, "omnibus.request_id": event_rid(event)}
            with tracing.span("route", event.ticket.trace, about, kind="consumer"):
                await self._advance(event)
        self._count(delivery, "forwarded")
        return True

    def _count(self, delivery: Delivery, outcome: str) -> None:
        """An event was `forwarded`, ended its request as `poisonous`, or was put back for another try (`retried`)."""
        self._counter(delivery.subject.split(".")[-2], outcome).inc()

    async def _advance(self, event: Event) -> None:
        if not isinstance(event, StageResult) or needs_record(event):
            if not await self._performer.end(event):
                await self._performer.ledger.transact(event_rid(event), lambda entry: self._perform(event, entry))
        elif not await self._pass_on(event):
            await self._performer.clear_orphans(event.ticket.rid)  # stored too late for its end

    async def _pass_on(self, event: StageResult) -> bool:
        """Publish the tasks that follow; False when the request was stopped, or another attempt was first, and its end too."""
        if self._stopped.holds(event.ticket.rid, self._performer.clock.now(), run=event.ticket.run):
            return False
        return all([await self._performer.publish(task) for task in linear_tasks(event)])

    async def _perform(self, event: Event, entry: StoredRecord | None) -> None:
        now = self._performer.clock.now()
        if entry is not None:
            await self._performer.decided(advance(event, entry.record), entry)
        elif isinstance(event, DeadlinePassed) and now > event.deadline + OPEN_TTL:
            effects = lapse(self._performer.pipeline, event.rid, nonce=secrets.token_hex(8), now=now)
            await self._performer.perform(effects)

    async def _precedes_record(self, event: Event) -> bool:
        if not isinstance(event, DeadlinePassed) or self._performer.clock.now() > event.deadline + ADMISSION:
            return False
        return await self._performer.ledger.read(event.rid) is None

    async def give_up(self, delivery: Delivery, error: Exception, *, dead: bool) -> None:
        """End the request that the subject names; nothing when it has ended, or is not known.

        `dead`: all attempts at the event were used up, so that an operator may want to run the request again.
        """
        rid, failure = subjects.parse_rid(delivery.subject), Failure.of(error)
        self._count(delivery, "poisonous")
        log.error(LogEvent.EVENT_POISONOUS, request=rid, subject=delivery.subject, error=str(error))

        async def end(entry: StoredRecord | None) -> None:
            if entry is not None:
                await self._performer.decided(fail(entry.record, failure, dead=dead), entry)

        if not is_name(rid):  # no record can have such a key
            return
        try:
            await self._performer.ledger.transact(rid, end)
        except Unreadable as unreadable:
            await self._bury(rid, unreadable)

    async def _bury(self, rid: str, unreadable: Unreadable) -> None:
        """Replace a record that nobody can read by one that says so, and keep what it was as a dead letter."""
        now, pipeline = self._performer.clock.now(), self._performer.pipeline
        effects = bury(pipeline, rid, unreadable.data, Failure.of(unreadable), nonce=secrets.token_hex(8), now=now)
        await self._performer.perform(effects, unreadable.revision)
        self._performer.telemetry.performed(effects, None)


def _decode(delivery: Delivery) -> Event:
    """The event in a delivery; raises Unreadable when it is none, or not of the request that its subject names."""
    try:
        return _checked(codec.decode(delivery.data, Event), subjects.parse_event(delivery.subject).rid)
    except InvalidRequest as error:
        raise Unreadable(f"the event on {delivery.subject!r} cannot be read: {error.message}") from error


def _checked(event: Event, rid: str) -> Event:
    if event_rid(event) != rid:
        raise InvalidRequest(f"it is of {event_rid(event)!r}")
    if isinstance(event, StageResult | StageFailed) and event.stage_id not in event.ticket.route.stage_ids:
        raise InvalidRequest(f"its route has no stage {event.stage_id}")
    return event
