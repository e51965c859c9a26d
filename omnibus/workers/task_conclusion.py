"""The conclusion of a task: what follows from it is published, and then its delivery acknowledged. Never in another order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from omnibus.broker.delivery import Delivery
from omnibus.errors import (
    AttemptSuperseded,
    BrokerDenied,
    BrokerError,
    BrokerRefused,
    EngineDead,
    InvalidRequest,
    OmnibusError,
    RequestTooLarge,
    StageTimeout,
    Unreadable,
)
from omnibus.ledger.performer import Performer
from omnibus.observability.events import LogEvent
from omnibus.pipeline.spec import StageSpec
from omnibus.requests.effects import PublishEvent, PublishTask
from omnibus.wire import subjects
from omnibus.wire.envelope import AttemptFailed, StageFailed, StageResult
from omnibus.wire.failed_attempt import Attempt
from omnibus.wire.failure import Failure, last_frame, text_of
from omnibus.wire.names import is_name
from omnibus.workers.assignment import Assignment, Interruption
from omnibus.workers.attempt_decision import GiveUp, after_failure, following
from omnibus.workers.claims import Claims
from omnibus.workers.engine_health import EngineHealth
from omnibus.workers.task_telemetry import TaskTelemetry

Leave = Callable[[EngineDead], Awaitable[None]]
Outcome = StageResult | OmnibusError | Interruption


class TaskConclusion:
    """Publishes what follows from tasks, and answers their deliveries. Methods raise BrokerError.

    Invariant: a delivery is acknowledged only after the broker acknowledged everything that follows from it, so that an
    open request always has a message in the queue. Whatever fails on the way leaves the delivery unacknowledged.
    """

    def __init__(
        self, stage: StageSpec, performer: Performer,
        *, claims: Claims, telemetry: TaskTelemetry, health: EngineHealth, leave: Leave,
    ) -> None:  # fmt: skip
        """`leave` ends the replica when its engine is dead, and returns when no more tasks can come to it."""
        self._stage, self._performer, self.clock = stage, performer, performer.clock
        self._claims, self._telemetry, self._health, self._leave = claims, telemetry, health, leave

    async def conclude(self, assignment: Assignment, outcome: Outcome) -> None:
        """Do what follows from the outcome of an attempt, or from its interruption."""
        match outcome:
            case _ if assignment.abandoned:
                self._telemetry.lease_lost(assignment)
            case StageResult():
                await self._publish_result(assignment, outcome)
            case AttemptSuperseded() if outcome.is_same_task:
                self._telemetry.lease_lost(assignment)
            case AttemptSuperseded():  # another message has the work, and outlives this one
                await self.drop(assignment)
            case Interruption.REQUEUED:
                await self.requeue(assignment)
            case BrokerError() if outcome.retryable:  # an outage, which must not end a request
                await self.requeue(assignment)
            case Interruption.RELEASED:
                await self._fail(assignment, self._health.death or EngineDead())
            case Interruption.TIMED_OUT:
                limit = f"stage {self._stage.name!r} took longer than {self._stage.timeout:g} s"
                await self._fail(assignment, StageTimeout(limit))
            case OmnibusError():
                await self._fail(assignment, outcome)
            case _:
                await self.drop(assignment)

    async def reject(self, delivery: Delivery, error: InvalidRequest) -> None:
        """End the request that the subject of a malformed task names, with what is wrong, and acknowledge the delivery.

        Without a ticket in hand, the ledger's is taken; when the ledger knows no such request, or can know none by such a
        name, nobody waits for it.
        """
        self._telemetry.malformed(delivery.subject, error)
        announced = subjects.parse_task(delivery.subject)
        try:
            found = await self._performer.ledger.read(announced.rid) if is_name(announced.rid) else None
        except Unreadable:  # an orchestrator buries the record, at its deadline
            found = None
        except BrokerDenied:  # a worker's role reads no records
            found, stage_id = None, announced.stage_id
            await self._performer.report_unreadable(stage_id, announced.rid, delivery.stream_seq, error.message)
        if found is not None and not found.record.state.terminal:
            ticket, stage_id = found.record.ticket, announced.stage_id
            failure = Failure.of(error, stage_id=stage_id, replica=self._claims.replica)
            event = StageFailed(ticket=ticket, stage_id=stage_id, failure=failure)
            await self._performer.perform((PublishEvent(event, announced.rid, stage_id, ticket.run),))
        await delivery.ack()

    async def requeue(self, assignment: Assignment) -> None:
        """Put the task back, for any replica: this one leaves, or is cut off. Uses up no attempt."""
        delivery = assignment.delivery
        await delivery.requeue(subjects.shared_lane_of(delivery.subject, assignment.task.ticket.lane))
        self._telemetry.ended(assignment, LogEvent.TASK_REQUEUED)

    async def drop(self, assignment: Assignment) -> None:
        """Its request has ended: take it off the queue."""
        await self._clear_orphans(assignment)
        await self._ack(assignment)
        self._telemetry.ended(assignment, LogEvent.TASK_DROPPED)

    async def give_up(self, assignment: Assignment, disposition: GiveUp, last: Attempt | None = None) -> None:
        """End the request; `last` is the attempt that used up the others."""
        task = assignment.task
        event = StageFailed(
            ticket=task.ticket.without_request(), stage_id=task.stage_id, failure=disposition.failure,
            dead=disposition.dead, attempt=last,
        )  # fmt: skip
        await self._publish_event(assignment, event)
        await self._ack(assignment)
        self._telemetry.gave_up(assignment, disposition.failure, dead=disposition.dead)

    async def clear_abandoned(self, assignment: Assignment) -> None:
        """Remove what an abandoned attempt has stored, unless its request is still open."""
        if assignment.abandoned:
            await self._clear_orphans(assignment)

    async def _publish_result(self, assignment: Assignment, result: StageResult) -> None:
        try:
            if not await self._end(assignment, result):
                for effect in following(result):
                    await self._perform(assignment, effect)
        except (BrokerRefused, RequestTooLarge) as error:  # it would be refused again
            await self._fail(assignment, error)
            return
        if assignment.delivery.again and any(timing.flowed for timing in result.timings[-1:]):
            await self._clear_orphans(assignment)  # the request may have ended while this wrote its flow again
        await self._ack(assignment)
        self._telemetry.finished(assignment, result)

    async def _end(self, assignment: Assignment, result: StageResult) -> bool:
        """End the request where its route leaves that to the last worker; False where an orchestrator has to decide."""
        if assignment.abandoned or not result.ticket.route.is_ended_by_worker(result.stage_id):
            return False
        try:
            return await self._performer.end(result, may_purge=False)
        except BrokerDenied:  # credentials of a former version
            return False

    async def _fail(self, assignment: Assignment, error: OmnibusError) -> None:
        delivery = assignment.delivery
        if (raised := _raised(error)) is not None:
            self._telemetry.raised(assignment, raised)
        if isinstance(error, EngineDead):
            await self._leave(error)
        disposition = after_failure(error, assignment.task, delivered=delivery.attempts, replica=self._claims.replica)
        if isinstance(disposition, GiveUp):
            last = self._failed_attempt(assignment, error) if disposition.dead else None
            await self.give_up(assignment, disposition, last)
            return
        self._telemetry.retried(assignment, error, disposition.delay)
        news = AttemptFailed(rid=assignment.rid, attempt=self._failed_attempt(assignment, error))
        await self._publish_event(assignment, news)
        if not assignment.abandoned:
            await delivery.nak(disposition.delay)

    def _failed_attempt(self, assignment: Assignment, error: OmnibusError) -> Attempt:
        """Make the entry of a failed attempt in the request's history."""
        delivery, failure, raised = assignment.delivery, Failure.of(error), _raised(error)
        return Attempt(
            stage_id=assignment.task.stage_id, run=assignment.task.ticket.run,
            task_seq=delivery.stream_seq, delivery=delivery.num_delivered, at=self.clock.now(),
            replica=self._claims.replica, code=failure.code, message=failure.message,
            where=last_frame(raised) if raised is not None else "", detail=text_of(raised) if raised is not None else "",
        )  # fmt: skip

    async def _publish_event(self, assignment: Assignment, event: AttemptFailed | StageFailed) -> None:
        task = assignment.task
        await self._perform(assignment, PublishEvent(event, assignment.rid, task.stage_id, task.ticket.run))

    async def _perform(self, assignment: Assignment, effect: PublishTask | PublishEvent) -> None:
        if assignment.abandoned:
            return
        if not await self._performer.publish(effect):  # another attempt was first
            await self._clear_orphans(assignment)

    async def _clear_orphans(self, assignment: Assignment) -> None:
        """Remove what this attempt stored after its request's end, which nobody else would know of."""
        try:
            await self._performer.report_orphans(assignment.rid)
        except (BrokerError, Unreadable) as error:  # the store's own lifetime removes it, then
            self._telemetry.left_behind(assignment, error)

    async def _ack(self, assignment: Assignment) -> None:
        if assignment.abandoned:
            return
        try:
            await assignment.delivery.ack()
            assignment.acknowledged = True
        except BrokerError:  # delivered again, then: what follows from it is published, and deduplicated
            self._telemetry.ack_failed(assignment)


def _raised(error: OmnibusError) -> BaseException | None:
    """The exception of foreign code that an error was made of."""
    cause: BaseException | None = error
    while isinstance(cause, OmnibusError):
        cause = cause.__cause__
    return cause
