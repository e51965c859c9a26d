"""The life of one task in a replica: taken, decided about, run, published, acknowledged. Never in another order."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from omnibus.broker.delivery import Delivery
from omnibus.errors import (
    BrokerDenied,
    BrokerError,
    BrokerRefused,
    EngineDead,
    EngineError,
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
from omnibus.requests.record import BEYOND_DEADLINE
from omnibus.wire import subjects
from omnibus.wire.envelope import AttemptFailed, StageFailed, StageResult
from omnibus.wire.failed_attempt import Attempt
from omnibus.wire.failure import Failure, last_frame, text_of
from omnibus.workers.assignment import Assignment, Claims, Interruption
from omnibus.workers.attempt_decision import (
    Disposition,
    GiveUp,
    after_failure,
    decode_task,
    disposition_of,
    exhausted,
    following,
    is_last_attempt,
)
from omnibus.workers.engine_health import EngineHealth
from omnibus.workers.execution import Execution
from omnibus.workers.task_slots import TaskSlots
from omnibus.workers.task_telemetry import TaskTelemetry

ABORT_TIMEOUT = 5.0
"""Seconds for an engine to end a stopped job."""
SETTLE = 0.1
"""Seconds before a last attempt begins, in which others that came with it arrive."""
_MOST_SETTLES = 100
"""How many times as long it waits at the most, until those are put back."""
_PUT_BACK = 0.25
"""Seconds for which a slot rests whose task was put back: it might come here again at once."""

Work = asyncio.Task[StageResult | OmnibusError]
Outcome = StageResult | OmnibusError | Interruption
Leave = Callable[[EngineDead], Awaitable[None]]


class TaskService:
    """Sees the tasks of one replica through, each in a task of its own.

    Invariant: a delivery is acknowledged only after the broker acknowledged everything that follows from it, so that an
    open request always has a message in the queue. Whatever fails on the way leaves the delivery unacknowledged.
    """

    def __init__(
        self, stage: StageSpec, execution: Execution, performer: Performer,
        *, claims: Claims, slots: TaskSlots, telemetry: TaskTelemetry, health: EngineHealth, leave: Leave,
    ) -> None:  # fmt: skip
        """`leave` ends the replica when its engine is dead, and returns when no more tasks can come to it."""
        self._stage = stage
        self._execution, self._performer, self._clock = execution, performer, performer.clock
        self._claims, self._slots, self._telemetry, self._health, self._leave = claims, slots, telemetry, health, leave
        self._has_last_attempt = False
        """Whether a task at its last attempt runs here."""
        self._last_attempts: set[Assignment] = set()
        """Tasks at their last attempts that are in hand, those left out that are put back."""

    def take(self, delivery: Delivery) -> Coroutine[Any, Any, None]:
        """Have a delivery in hand from here on, so that no drain overlooks it. To be awaited: sees it through, raises nothing."""
        self._slots.taken()
        try:
            task = decode_task(delivery.data, delivery.subject, self._stage.stage_id)
        except InvalidRequest as error:
            return self._guarded(self._reject(delivery, error), None)
        assignment = self._claims.take(delivery, task)
        if is_last_attempt(task, delivery.attempts):
            self._last_attempts.add(assignment)
        self._slots.admit(assignment)
        return self._guarded(self._work_on(assignment), assignment)

    async def _guarded(self, work: Coroutine[Any, Any, None], assignment: Assignment | None) -> None:
        """The root of one task: whatever happens to it stays here. Its slot is free when nothing works on it any more."""
        try:
            await work
        except Exception:  # noqa: BLE001 logged and counted
            self._telemetry.crashed("worker")  # not acknowledged: delivered again when its lease runs out
        finally:
            self._health.check()
            if assignment is not None and assignment.work is not None and not assignment.work.done():
                assignment.work.add_done_callback(lambda _: self._slots.freed())
            else:
                self._slots.freed()

    async def _reject(self, delivery: Delivery, error: InvalidRequest) -> None:
        """End the request that the subject of a malformed task names, with what is wrong, and acknowledge the delivery.

        Without a ticket in hand, the ledger's is taken; when the ledger knows no such request, or can know none by such a
        name, nobody waits for it. Raises BrokerError when ledger or queue cannot be reached: the delivery then comes again.
        """
        self._telemetry.malformed(delivery.subject, error)
        announced = subjects.parse_task(delivery.subject)
        try:
            found = await self._performer.ledger.read(announced.rid) if subjects.is_name(announced.rid) else None
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

    async def _work_on(self, assignment: Assignment) -> None:
        try:
            await self._claims.announce()
            await self._serve(assignment)
        finally:
            self._last_attempts.discard(assignment)
            self._claims.release(assignment)
            if not assignment.acknowledged:
                # It is delivered again: a stale claim would have it taken from the replica that runs it then.
                await self._claims.announce()

    async def _serve(self, assignment: Assignment) -> None:
        """Decide about a task, and see it through; raises BrokerError when it must be left to be delivered again."""
        task, delivered, now = assignment.task, assignment.delivery.attempts, self._clock.now()
        match disposition_of(
            task, delivered=delivered, now=now,
            cancelled=self._claims.is_cancelled(assignment),
            redelivered=self._is_redelivered(assignment), has_last_attempt=self._has_last_attempt,
        ):  # fmt: skip
            case Disposition.DROP:
                await self._drop(assignment)
            case Disposition.EXHAUSTED:
                await self._give_up(assignment, exhausted(task, delivered=delivered, replica=self._claims.replica))
            case Disposition.REROUTE:
                await self._requeue(assignment)
            case Disposition.PUT_BACK:
                await self._requeue(assignment)
                self._last_attempts.discard(assignment)
                await asyncio.sleep(_PUT_BACK)
            case Disposition.RUN_ISOLATED:
                await self._run(assignment, isolated=True)
            case Disposition.RUN:
                await self._run(assignment)

    def _is_redelivered(self, assignment: Assignment) -> bool:
        delivery = assignment.delivery
        return delivery.num_delivered > 1 and subjects.parse_task(delivery.subject).lane == self._claims.replica

    async def _run(self, assignment: Assignment, *, isolated: bool = False) -> None:
        self._telemetry.received(assignment)
        self._has_last_attempt = self._has_last_attempt or isolated
        try:
            async with assignment.leased():
                if isolated and (why := await self._settle(assignment)) is not None:
                    await self._conclude(assignment, why)
                else:
                    await self._see_through(assignment)
        finally:
            self._telemetry.released(assignment)
            if isolated:
                self._has_last_attempt = False

    async def _settle(self, assignment: Assignment) -> Interruption | None:
        """Wait until the others that came with a last attempt are put back; why it was stopped, if it was."""
        for _ in range(_MOST_SETTLES):
            await asyncio.wait({assignment.interruption}, timeout=SETTLE)
            if assignment.interruption.done():
                why = assignment.interruption.result()
                # It has not begun: the death of the engine uses up no attempt.
                return Interruption.REQUEUED if why is Interruption.RELEASED else why
            if self._last_attempts == {assignment}:
                break
        return None

    async def _see_through(self, assignment: Assignment) -> None:
        delivery = assignment.delivery
        run = self._execution.run(
            assignment.task, task_seq=delivery.stream_seq, delivered=delivery.attempts, again=delivery.again,
            replica=self._claims.replica,
        )  # fmt: skip
        work = assignment.work = asyncio.create_task(run, name=f"run-{assignment.rid}")
        try:
            outcome = await self._attempt(assignment, work)
            if outcome is Interruption.CANCELLED:
                await self._stop(assignment, work)  # first: what it still stores is cleared up in the end
            await self._conclude(assignment, outcome)
        finally:
            await self._stop(assignment, work)
            if assignment.abandoned:
                await self._clear_orphans(assignment)

    async def _attempt(self, assignment: Assignment, work: Work) -> Outcome:
        """Wait until the job ends, somebody stops it, or its time is over."""
        limit = self._stage.timeout or math.inf
        left = max(assignment.task.ticket.deadline - self._clock.now() + BEYOND_DEADLINE, 0.0)
        either: set[asyncio.Future[Any]] = {work, assignment.interruption}
        await asyncio.wait(either, timeout=min(left, limit), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            cancelled = EngineError("the stage's code cancelled the task that runs it")
            return cancelled if work.cancelled() else work.result()
        if not assignment.interruption.done() and limit < left:
            return StageTimeout(f"stage {self._stage.name!r} took longer than {limit:g} s")
        # Unless it was stopped already: its end was broadcast, and missed here.
        assignment.interrupt(Interruption.CANCELLED)
        return assignment.interruption.result()

    async def _stop(self, assignment: Assignment, work: Work) -> None:
        """Have the engine end a job; returns when it has, or after a while: its slot stays busy then."""
        if work.done() or work.cancelling():
            return
        try:
            if self._health.death is None:
                async with asyncio.timeout(ABORT_TIMEOUT):
                    await self._execution.engine.abort(assignment.rid)
        except Exception:  # noqa: BLE001 logged and counted: an engine that fails or hangs here must not keep the task
            self._telemetry.crashed("abort")
        finally:
            work.cancel()
        if self._health.death is None:
            await asyncio.wait({work}, timeout=ABORT_TIMEOUT)

    async def _conclude(self, assignment: Assignment, outcome: Outcome) -> None:
        match outcome:
            case _ if assignment.abandoned:
                self._telemetry.lease_lost(assignment)
            case StageResult():
                await self._finish(assignment, outcome)
            case Interruption.REQUEUED:
                await self._requeue(assignment)
            case BrokerError() if outcome.retryable:  # an outage, which must not end a request
                await self._requeue(assignment)
            case Interruption.RELEASED:
                await self._fail(assignment, self._health.death or EngineDead())
            case OmnibusError():
                await self._fail(assignment, outcome)
            case _:
                await self._drop(assignment)

    async def _requeue(self, assignment: Assignment) -> None:
        delivery = assignment.delivery
        # A task that was directed to this replica goes to any free one: this one leaves, or is cut off.
        await delivery.requeue(subjects.shared_lane_of(delivery.subject, assignment.task.ticket.lane))
        self._telemetry.ended(assignment, LogEvent.TASK_REQUEUED)

    async def _finish(self, assignment: Assignment, result: StageResult) -> None:
        try:
            if not await self._end(assignment, result):
                for effect in following(result):
                    await self._perform(assignment, effect)
        except (BrokerRefused, RequestTooLarge) as error:  # it would be refused again
            await self._fail(assignment, error)
            return
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
            await self._give_up(assignment, disposition, last)
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
            task_seq=delivery.stream_seq, delivery=delivery.num_delivered, at=self._clock.now(),
            replica=self._claims.replica, code=failure.code, message=failure.message,
            where=last_frame(raised) if raised is not None else "", detail=text_of(raised) if raised is not None else "",
        )  # fmt: skip

    async def _give_up(self, assignment: Assignment, disposition: GiveUp, last: Attempt | None = None) -> None:
        task = assignment.task
        event = StageFailed(
            ticket=task.ticket.without_request(), stage_id=task.stage_id, failure=disposition.failure,
            dead=disposition.dead, attempt=last,
        )  # fmt: skip
        await self._publish_event(assignment, event)
        await self._ack(assignment)
        self._telemetry.gave_up(assignment, disposition.failure, dead=disposition.dead)

    async def _drop(self, assignment: Assignment) -> None:
        await self._clear_orphans(assignment)
        await self._ack(assignment)
        self._telemetry.ended(assignment, LogEvent.TASK_DROPPED)

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
