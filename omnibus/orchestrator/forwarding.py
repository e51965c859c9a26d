"""One event: read what is needed, decide, perform, acknowledge."""

from __future__ import annotations

from omnibus.broker.delivery import Delivery
from omnibus.errors import BrokerError, InvalidRequest, OmnibusError, RevisionConflict
from omnibus.ledger.performer import Performer
from omnibus.ledger.records import Entry
from omnibus.orchestrator.event_telemetry import Journal
from omnibus.requests.advance import advance, fail, linear_tasks, needs_record
from omnibus.requests.cancellations import Cancellations
from omnibus.wire import codec, subjects
from omnibus.wire.envelope import DeadlinePassed, Event, StageFailed, StageResult, event_rid
from omnibus.wire.failure import Failure

ATTEMPTS = 5
"""Deliveries of one event after which its request is ended as failed."""
ADMISSION = 60.0
"""Seconds past a deadline in which its request may still be on the way into the ledger: every step of that is retried."""
_RECHECK_INTERVAL = 1.0
CONFLICTS = 50
"""Writers that one event lets pass before it is left to be delivered again."""


class Forwarder:
    """Handles the events of one pipeline."""

    def __init__(self, performer: Performer, stopped: Cancellations, telemetry: Journal) -> None:
        self._performer, self._stopped, self._telemetry = performer, stopped, telemetry

    async def handle(self, delivery: Delivery) -> None:
        """Handle one event; acknowledged when this returns. Raises BrokerError, and then it must be delivered again.

        An event that cannot be handled, ever, ends its request as failed. A deadline that comes before its record is put
        back: dropped, it would leave the request open for ever.
        """
        try:
            event = _decode(delivery)
            if await self._precedes_record(event):
                await delivery.nak(_RECHECK_INTERVAL)
                self._telemetry.handled(delivery, "retried")
                return
            await self._advance(event)
            self._telemetry.handled(delivery, "forwarded")
        except BrokerError as error:
            if error.retryable or delivery.num_delivered < ATTEMPTS:
                raise
            await self._fail(delivery, error, dead=True)
        except OmnibusError as error:
            await self._fail(delivery, error)
        except Exception as error:
            if delivery.num_delivered < ATTEMPTS:
                raise
            await self._fail(delivery, error, dead=True)
        await delivery.ack()

    async def _advance(self, event: Event) -> None:
        if isinstance(event, StageResult) and not needs_record(event):
            if self._is_stopped(event) or not await self._pass_on(event):
                await self._performer.clear_orphans(event.ticket.rid)  # stored too late for its end
            return
        for _ in range(CONFLICTS):
            entry = await self._read(event_rid(event))
            try:
                await self._perform(event, entry)
            except RevisionConflict:
                continue
            return
        raise RevisionConflict(f"the record of request {event_rid(event)!r} keeps changing")

    async def _pass_on(self, event: StageResult) -> bool:
        """Publish the tasks that follow from it; False when another attempt was first, whose end may have come since."""
        return all([await self._performer.publish(task) for task in linear_tasks(event)])

    def _is_stopped(self, event: StageResult) -> bool:
        return self._stopped.holds(event.ticket.rid, self._performer.clock.now(), run=event.ticket.run)

    async def _perform(self, event: Event, entry: Entry | None) -> None:
        record, revision = (entry.record, entry.revision) if entry is not None else (None, 0)
        effects = advance(event, record)
        await self._performer.perform(effects, revision)
        self._telemetry.performed(effects, record)

    async def _precedes_record(self, event: Event) -> bool:
        if not isinstance(event, DeadlinePassed) or self._performer.clock.now() > event.deadline + ADMISSION:
            return False
        return await self._read(event.rid) is None

    async def _read(self, rid: str) -> Entry | None:
        return await self._performer.ledger.read(rid)

    async def _readable(self, rid: str) -> Entry | None:
        """The record; None also for a name that none can bear, and for one that is damaged: nobody can end it."""
        try:
            return await self._read(rid) if subjects.is_name(rid) else None
        except InvalidRequest:
            return None

    async def _fail(self, delivery: Delivery, error: Exception, *, dead: bool = False) -> None:
        """End the request that the subject names; nothing when it has ended, or is not known.

        `dead`: all attempts at the event were used up, so that an operator may want to run the request again.
        """
        rid = subjects.parse_rid(delivery.subject)
        self._telemetry.poisonous(delivery, error)
        for _ in range(CONFLICTS):
            entry = await self._readable(rid)
            if entry is None:
                return
            effects = fail(entry.record, Failure.of(error), dead=dead)
            try:
                await self._performer.perform(effects, entry.revision)
            except RevisionConflict:
                continue
            self._telemetry.performed(effects, entry.record)
            return
        raise RevisionConflict(f"the record of request {rid!r} keeps changing")


def _decode(delivery: Delivery) -> Event:
    """The event in a delivery; raises InvalidRequest when it is none, or not of the request that its subject names."""
    if subjects.parse_event(delivery.subject).kind is subjects.EventKind.DEADLINE and not delivery.data:
        raise InvalidRequest("a deadline without a body")
    event: Event = codec.decode(delivery.data, Event)
    if event_rid(event) != subjects.parse_rid(delivery.subject):
        raise InvalidRequest(f"an event of {event_rid(event)!r} came on {delivery.subject!r}")
    if isinstance(event, StageResult | StageFailed) and all(
        stage.stage_id != event.stage_id for stage in event.ticket.route.stages
    ):
        raise InvalidRequest(f"the route of {event_rid(event)!r} has no stage {event.stage_id}")
    return event
