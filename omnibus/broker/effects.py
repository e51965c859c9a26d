"""The shell that performs effects: in order, each acknowledged before the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from omnibus.broker.connection import Connection
from omnibus.broker.ledger import Ledger
from omnibus.broker.objects import ObjectStore
from omnibus.broker.work import WorkQueue
from omnibus.errors import RequestTooLarge
from omnibus.requests import effects
from omnibus.requests.effects import Effect
from omnibus.wire import codec, subjects
from omnibus.wire.control import Cancel
from omnibus.wire.envelope import DeadlinePassed, Event, Task, event_kind
from omnibus.wire.payload import ENVELOPE_LIMIT

LaneOf = Callable[[Task], str]


def shared_lane(task: Task) -> str:
    """The lane that the request asks for, which all replicas of a stage share."""
    return task.ticket.lane


class Performer:
    """Performs effects on one pipeline. Every effect may be performed again, so a failed run is repeated from the start."""

    def __init__(self, connection: Connection, pipeline: str, *, lane_of: LaneOf = shared_lane) -> None:
        """`lane_of` chooses the lane of each task that is published."""
        self.ledger = Ledger(connection, pipeline)
        self.queue = WorkQueue(connection, pipeline)
        self._objects = ObjectStore(connection, subjects.payloads_bucket(pipeline))
        self._connection, self._pipeline = connection, pipeline
        self._lane_of = lane_of

    async def perform(self, wanted: Iterable[Effect], revision: int = 0) -> None:
        """Perform effects; `revision` is that of the record they were decided on.

        Raises RevisionConflict when the record has changed meanwhile: read it and decide again. Raises BrokerUnavailable,
        and RequestTooLarge for an envelope above its limit.
        """
        for effect in wanted:
            revision = await self._perform(effect, revision)

    async def _perform(self, effect: Effect, revision: int) -> int:
        """Returns the revision of the record after it."""
        match effect:
            case effects.PublishTask(task):
                await self._publish(self._task_subject(task), task, effect.msg_id)
            case effects.PublishEvent(event, rid, stage_id):
                stage = subjects.ANY_STAGE if stage_id is None else stage_id
                subject = subjects.event(self._pipeline, stage, event_kind(event), rid)
                await self._publish(subject, event, effect.msg_id)
            case effects.Tell(front, message):
                await self._connection.publish(
                    subjects.out(self._pipeline, front, message.rid), codec.encode(message)
                )  # fmt: skip
            case effects.SaveRecord(record):
                return await self.ledger.save(record, revision)
            case effects.CreateRecord(record):
                return await self.ledger.create(record)
            case effects.ScheduleDeadline(rid, deadline):
                event = DeadlinePassed(rid=rid, deadline=deadline)
                await self.queue.schedule_deadline(rid, deadline, codec.encode(event))
            case effects.Stop(rid, until):
                await self._connection.publish(
                    subjects.ctl_all(self._pipeline), codec.encode(Cancel(rids=(rid,), until=until))
                )  # fmt: skip
            case effects.Purge():
                await self._purge(effect)
            case effects.KeepDead(record):
                await self.ledger.keep_dead(record)
        return revision

    async def _purge(self, effect: effects.Purge) -> None:
        if effect.queued:
            await self.queue.purge(effect.rid)
        else:
            await self.queue.cancel_deadline(effect.rid)
        if effect.stored:
            await self._objects.purge_group(effect.rid)

    def _task_subject(self, task: Task) -> str:
        return subjects.task(self._pipeline, task.stage_id, self._lane_of(task), task.ticket.rid)

    async def _publish(self, subject: str, envelope: Task | Event, msg_id: str) -> None:
        data = codec.encode(envelope)
        if len(data) > ENVELOPE_LIMIT:
            raise RequestTooLarge(f"an envelope of {len(data)} bytes exceeds the limit of {ENVELOPE_LIMIT}")
        await self._connection.js_publish(subject, data, msg_id)
