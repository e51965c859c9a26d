"""The shell that performs effects: in order, each acknowledged before the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from omnibus.broker.connection import Connection, Publishing
from omnibus.broker.objects import ObjectStore
from omnibus.errors import BrokerError, BrokerUnavailable, RequestTooLarge, RevisionConflict, Unreadable
from omnibus.ledger.dead_letters import DeadLetters
from omnibus.ledger.records import Ledger, StoredRecord
from omnibus.ledger.request_telemetry import RequestTelemetry
from omnibus.ledger.work_queue import WorkQueue
from omnibus.observability.tracing import TRACE_HEADERS
from omnibus.requests import effects
from omnibus.requests.advance import advance, as_admitted, orphan_effects
from omnibus.requests.effects import Effect
from omnibus.requests.record import Record
from omnibus.wire import codec, stores, subjects
from omnibus.wire.control import Cancel, Free
from omnibus.wire.envelope import DeadlinePassed, Event, Task, Ticket, event_kind
from omnibus.wire.names import is_name
from omnibus.wire.payload import ENVELOPE_LIMIT

_JOINED = 0.02
"""Seconds for which a timer to be removed waits for others: few enough that one message has them all."""
_NO_TRACE: Mapping[str, str] = {}
LaneOf = Callable[[Task], str]


def shared_lane(task: Task) -> str:
    """The lane that the request asks for, which all replicas of a stage share."""
    return task.ticket.lane


def latest_run(record: Record | None) -> int:
    """The run that a request has come to, negative while it is open; 0 for one that is not known."""
    if record is None:
        return 0
    return record.ticket.run if record.state.terminal else -record.ticket.run


class Performer:
    """Performs effects on one pipeline. Every effect may be performed again, so a failed run is repeated from the start."""

    def __init__(self, connection: Connection, pipeline: str, *, lane_of: LaneOf = shared_lane) -> None:
        """`lane_of` chooses the lane of each task that is published."""
        self.ledger = Ledger(connection, pipeline)
        self.queue = WorkQueue(connection, pipeline)
        self.dead_letters = DeadLetters(connection, pipeline)
        self._objects = ObjectStore(connection, stores.payloads_bucket(pipeline))
        self._connection, self.pipeline = connection, pipeline
        self.telemetry = RequestTelemetry(connection.metrics, pipeline, connection.clock)
        self._lane_of = lane_of
        self.clock = connection.clock
        """The clock that deadlines are compared with."""
        self._timers: list[str] = []
        """Timers of requests that were ended here, which an orchestrator is to remove."""

    async def perform(self, wanted: Iterable[Effect], revision: int = 0) -> None:
        """Perform effects; `revision` is that of the record they were decided on.

        Raises RevisionConflict when the record has changed meanwhile: read it and decide again. Raises BrokerUnavailable,
        and RequestTooLarge for an envelope above its limit.
        """
        for effect in wanted:
            revision = await self._perform(effect, revision)

    async def decided(self, wanted: Sequence[Effect], entry: StoredRecord) -> None:
        """Perform the effects that were decided on a record, and note what becomes of it. Raises as `perform`."""
        await self.perform(wanted, entry.revision)
        self.telemetry.performed(wanted, entry.record)

    async def open(self, record: Record) -> int:
        """Create a record and set its timer, both in flight at once; returns the revision when both are stored.

        Raises RevisionConflict when the id is taken: the timer is set then all the same. Left half-way, a timer without a
        record fires in vain. A record without a timer gets it from the next one who submits the request, or from the intake
        when a raw one comes again; one that nobody submits again was never accepted, and ends with its lifetime.
        """
        timer = self._schedule(record.ticket)
        try:
            revision = await self.ledger.create(record)
        except RevisionConflict:
            with suppress(BrokerError):
                await timer  # or it could not be removed again
            raise
        except BaseException:
            timer.drop()
            raise
        await timer
        return revision

    async def end(self, event: Event, *, may_purge: bool = True) -> bool:
        """End a request by its last result, unread: by a compare-and-set on the revision that its ticket names.

        False where that does not tell all, or the record has changed: read it, and decide. A role that may not purge has an
        orchestrator do it. Raises BrokerUnavailable.
        """
        if (record := as_admitted(event)) is None:
            return False
        save, *rest = advance(event, record)
        assert isinstance(save, effects.SaveRecord)
        try:
            await self.ledger.save(save.record, record.ticket.revision, unread=True)
        except RevisionConflict:
            return False
        self.telemetry.performed((save,), record)
        for effect in rest:
            if isinstance(effect, effects.Purge) and not may_purge:
                await self._ask_to_purge(effect)
            else:
                await self._perform(effect, 0)
        return True

    async def publish(self, effect: effects.PublishTask | effects.PublishEvent) -> bool:
        """Publish a task or an event; whether it was news: False when the broker remembers another of the same id.

        Raises BrokerUnavailable, and RequestTooLarge for an envelope above its limit.
        """
        envelope: Task | Event
        trace: Mapping[str, str] = _NO_TRACE
        match effect:
            case effects.PublishTask(envelope):
                rid, lane = envelope.ticket.rid, self._lane_of(envelope)
                subject = subjects.task(self.pipeline, envelope.stage_id, lane, rid)
                trace = envelope.ticket.trace
            case effects.PublishEvent(envelope, rid, stage_id):
                subject = subjects.event(self.pipeline, stage_id, event_kind(envelope), rid)
        data = codec.encode(envelope)
        if len(data) > ENVELOPE_LIMIT:
            raise RequestTooLarge(f"an envelope of {len(data)} bytes exceeds the limit of {ENVELOPE_LIMIT}")
        headers = {name: its for name, its in trace.items() if name in TRACE_HEADERS} if trace else None
        return not (await self._connection.js_publish(subject, data, effect.msg_id, headers=headers)).duplicate

    async def clear_orphans(self, rid: str, *, queued: bool = False) -> Record | None:
        """Remove what is stored for a request that has ended, and what is `queued`; returns its record. Idempotent.

        For a worker that may have stored something too late for the end's own purge. Payloads stored before this call are
        gone by then or go with the end: the record is read where it was written. Raises BrokerUnavailable and Unreadable.
        """
        entry = await self.ledger.read_latest(rid)
        record = entry.record if entry is not None else None
        await self.perform(orphan_effects(record, queued=queued))
        return record

    async def report_orphans(self, rid: str) -> None:
        """Have an orchestrator do the same, as the role of a worker may not; without one it is tried here. Raises BrokerError."""
        try:
            await self.ask_orphans(rid)
        except BrokerUnavailable:
            await self.clear_orphans(rid)

    async def ask_orphans(self, rid: str) -> int:
        """Have an orchestrator do the same; returns the request's run as `latest_run` has it.

        Raises BrokerUnavailable, also when there is no orchestrator.
        """
        answer = await self._connection.request(subjects.questions(self.pipeline, "orphans"), rid.encode())
        return int(answer.data)

    async def report_unreadable(self, stage_id: int, rid: str, task_seq: int, reason: str) -> None:
        """Have an orchestrator end the request of a task that cannot be read, by an event that says so. Raises BrokerError."""
        subject = subjects.event(self.pipeline, stage_id, subjects.EventKind.FAILED, rid)
        await self._connection.js_publish(subject, reason.encode(), f"unreadable.{rid}.{task_seq}")

    async def present(self, *, flows: bool = False) -> dict[str, bool]:
        """Requests that have payloads or `flows` stored for their hops, or anything queued, and whether that is so.

        The answer grows with their number. Raises BrokerUnavailable.
        """
        queued = await self.queue.present()
        stored = await self._objects.groups() | (await self._flowing() if flows else set())
        return {rid: rid in queued for rid in queued | stored if is_name(rid)}

    async def _flowing(self) -> set[str]:
        """Requests that have flows."""
        stream = stores.chunks_stream(self.pipeline)
        found = await self._connection.stored_subjects(stream, subjects.chunk_subjects(self.pipeline))
        return {subjects.chunk_rid(subject) for subject in found}

    async def discard_input(self, record: Record) -> None:
        """Remove the stored input of a record that will never be created; idempotent. Raises BrokerUnavailable."""
        if (key := record.ticket.request.object_key) is not None:
            await self._objects.delete(key)

    async def _perform(self, effect: Effect, revision: int) -> int:
        """Returns the revision of the record after it."""
        match effect:
            case effects.PublishTask() | effects.PublishEvent():
                await self.publish(effect)
            case effects.Notify(front, message):
                await self._connection.publish(subjects.out(self.pipeline, front, message.rid), codec.encode(message))
            case effects.SaveRecord(record):
                return await self.ledger.save(record, revision)
            case effects.CreateRecord(record):
                return await self.ledger.create(record)
            case effects.ScheduleDeadline(ticket):
                await self._schedule(ticket)
            case effects.Stop(rid, until, run):
                order = Cancel(rids=(rid,), until=until, run=run)
                await self._connection.publish(subjects.ctl_all(self.pipeline), codec.encode(order))
            case effects.Purge():
                await self._purge(effect)
            case effects.KeepDead(record):
                await self.dead_letters.keep(record)
            case effects.DropDead(record):
                await self.dead_letters.forget(record)
        return revision

    def _schedule(self, ticket: Ticket) -> Publishing:
        event = DeadlinePassed(rid=ticket.rid, deadline=ticket.deadline)
        return self.queue.schedule_deadline(ticket.rid, ticket.nonce, ticket.deadline, codec.encode(event))

    async def _purge(self, effect: effects.Purge) -> None:
        before = None
        if effect.queued:
            # Invariant: the sequence first, then the record. While that end is the last one, all that an operator's
            # retry, or a later request under the id, publishes has later sequences: it opens the record before.
            before = await self.queue.next_sequence()
            if not await self._stands(effect):
                return
        if effect.hosted:  # may be lost: the processes that have the memory ask about what stays in it
            free = Free(rid=effect.rid, run=effect.run)
            await self._connection.publish(subjects.ctl_all(self.pipeline), codec.encode(free))
        if effect.flowed:
            await self._purge_flows(effect)
        if effect.stored:
            # Invariant: before the queue, which may hold the very event that has all this repeated when its shell dies.
            await self._objects.purge_group(effect.rid)
        if effect.queued:
            await self.queue.purge(effect.rid, before=before)
        else:
            self.queue.cancel_deadline(effect.rid, effect.nonce)

    async def _purge_flows(self, effect: effects.Purge) -> None:
        """Remove the flows of the run that has ended and those before it; a later run, or request, has others."""
        stream = stores.chunks_stream(self.pipeline)
        for run in range(0 if effect.resumable else 1, effect.run + 1):
            gone = subjects.flows_filter(self.pipeline, effect.rid, effect.nonce, run)
            # A pipeline that was deployed before there were flows has no stream of them, until it is deployed again.
            await self._connection.find(f"STREAM.PURGE.{stream}", {"filter": gone})

    async def _ask_to_purge(self, effect: effects.Purge) -> None:
        """Have an orchestrator do it; nobody waits where it is the timer alone, of which several are asked for together.

        What is not done then is when the timer fires.
        """
        if effect.stored or effect.hosted or effect.flowed:
            with suppress(BrokerError, Unreadable):
                await self.report_orphans(effect.rid)
        else:
            self._timers.append(f"{effect.nonce}.{effect.rid}")
            if len(self._timers) == 1:
                asyncio.get_running_loop().call_later(_JOINED, self._ask_to_cancel)

    def _ask_to_cancel(self) -> None:
        timers, self._timers = " ".join(self._timers), []
        with suppress(BrokerError):
            self._connection.send(subjects.questions(self.pipeline, "orphans"), timers.encode())

    async def _stands(self, effect: effects.Purge) -> bool:
        entry = await self.ledger.read_latest(effect.rid)
        return entry is not None and entry.record.stands(effect.nonce, effect.run)
