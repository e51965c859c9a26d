"""What a replica does with one task: decide, run, publish, acknowledge. Never in another order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec

from omnibus.errors import BrokerError, BrokerRefused, EngineDead, EngineError, RequestTooLarge
from omnibus.ledger.performer import Performer
from omnibus.pipeline.route import Forwarding, Route, Target
from omnibus.requests.advance import linear_tasks, needs_event
from omnibus.requests.effects import PublishEvent, PublishTask
from omnibus.wire import subjects
from omnibus.wire.attempt import Attempt
from omnibus.wire.envelope import AttemptFailed, StageFailed, StageResult
from omnibus.wire.failure import Failure
from omnibus.workers.assignment import Assignment, Interruption
from omnibus.workers.engines.protocol import Engine
from omnibus.workers.execution import Execution
from omnibus.workers.task_telemetry import Journal
from omnibus.workers.triage import Disposition, GiveUp, after_failure, exhausted, triage

ABORT_TIMEOUT = 5.0
"""Seconds for an engine to let go of a stopped job."""
FOR_OTHERS = (Interruption.REQUEUED, Interruption.RELEASED)
"""What others are given at once: letting go of it here may take time, for an engine that hangs."""
BEYOND_DEADLINE = 1.0
"""Seconds after which a job past its request's deadline is stopped unasked: the broadcast of its end was lost."""

SETTLE = 0.1
"""Seconds before a last attempt begins, in which others that came with it are put back."""
_PUT_BACK = 0.25
"""Seconds for which a slot rests whose task was put back: it might come here again at once."""

Outcome = StageResult | Exception | Interruption
Leave = Callable[[Exception], Awaitable[None]]


class TaskService:
    """Sees tasks through, each in a task of its own.

    Invariant: a delivery is acknowledged only after the broker acknowledged everything that follows from it, so that an
    open request always has a message in the queue. Whatever fails on the way leaves the delivery unacknowledged.
    """

    def __init__(
        self, performer: Performer, engine: Engine, execution: Execution, telemetry: Journal, *, leave: Leave
    ) -> None:
        """`leave` ends the replica when its engine is dead, and returns when no more tasks can come to it."""
        self._performer, self._leave = performer, leave
        self._engine, self._execution = engine, execution
        self._telemetry = telemetry
        self.replica = ""
        """Who results come from; another after the replica had to register afresh."""
        self._has_last_attempt = False
        """Whether a task at its last attempt runs here."""

    async def serve(self, assignment: Assignment, *, cancelled: bool) -> None:
        """Decide about a task, and see it through; raises BrokerError when it must be left to be delivered again."""
        delivered, now = assignment.delivery.attempts, self._performer.clock.now()
        stuck, has_last_attempt = self._stuck(assignment), self._has_last_attempt
        match triage(
            assignment.task, delivered=delivered, cancelled=cancelled, now=now, stuck=stuck, has_last_attempt=has_last_attempt
        ):  # fmt: skip
            case Disposition.DROP:
                await self._drop(assignment)
            case Disposition.EXHAUSTED:
                await self._give_up(assignment, exhausted(assignment.task, delivered=delivered, replica=self.replica))
            case Disposition.REROUTE:
                await self._requeue(assignment)
            case Disposition.PUT_BACK:
                await self._requeue(assignment)
                await asyncio.sleep(_PUT_BACK)
            case Disposition.RUN_ISOLATED:
                await self._run_isolated(assignment)
            case Disposition.RUN:
                await self._run(assignment)

    def _stuck(self, assignment: Assignment) -> bool:
        delivery = assignment.delivery
        return delivery.num_delivered > 1 and subjects.parse_task(delivery.subject).lane == self.replica

    async def _run(self, assignment: Assignment, *, settle: float = 0.0) -> None:
        self._telemetry.received(assignment)
        try:
            async with assignment.lease:
                if settle and (await asyncio.wait({assignment.interruption}, timeout=settle))[0]:
                    await self._conclude(assignment, assignment.interruption.result())
                else:
                    await self._see_through(assignment)
        finally:
            self._telemetry.released(assignment)

    async def _run_isolated(self, assignment: Assignment) -> None:
        self._has_last_attempt = True
        try:
            await self._run(assignment, settle=SETTLE)
        finally:
            self._has_last_attempt = False

    async def _see_through(self, assignment: Assignment) -> None:
        work = asyncio.create_task(self._execute(assignment), name=f"run-{assignment.rid}")
        try:
            outcome = await self._attempt(assignment, work)
            if outcome not in FOR_OTHERS:
                await self._stop(assignment, work)
            await self._conclude(assignment, outcome)
        finally:
            await self._stop(assignment, work)
            if assignment.abandoned:
                await self._clear_orphans(assignment)

    async def _attempt(self, assignment: Assignment, work: asyncio.Task[StageResult | Exception]) -> Outcome:
        """Wait until the job ends or somebody stops it."""
        either: set[asyncio.Future[Any]] = {work, assignment.interruption}
        left = assignment.task.ticket.deadline - self._performer.clock.now() + BEYOND_DEADLINE
        done, _ = await asyncio.wait(either, timeout=max(left, 0.0), return_when=asyncio.FIRST_COMPLETED)
        if not done:
            assignment.interrupt(Interruption.CANCELLED)  # its end was told, and not heard here
        return work.result() if work.done() else assignment.interruption.result()

    async def _execute(self, assignment: Assignment) -> StageResult | Exception:
        delivery = assignment.delivery
        try:
            return await self._execution.run(
                assignment.task, task_seq=delivery.stream_seq, delivered=delivery.attempts, again=delivery.again,
                replica=self.replica,
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001 whatever an engine raises is judged, logged and counted
            return error
        except SystemExit as error:  # of a stage's own code: it would end the replica, and with it the tasks of others
            return EngineError(f"the stage's code called exit({error.code})")

    async def _stop(self, assignment: Assignment, work: asyncio.Task[StageResult | Exception]) -> None:
        if work.done():
            return
        try:
            if self._engine.dead() is None:
                async with asyncio.timeout(ABORT_TIMEOUT):
                    await self._engine.abort(assignment.rid)
        except Exception:  # noqa: BLE001 logged and counted: an engine that fails or hangs here must not keep the slot
            self._telemetry.crashed("abort")
        finally:
            work.cancel()
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
                await self._fail(assignment, EngineDead())
            case Exception():
                await self._fail(assignment, outcome)
            case _:
                await self._drop(assignment)

    async def _requeue(self, assignment: Assignment) -> None:
        delivery = assignment.delivery
        # What was directed to this replica goes to whoever is free: this one leaves, or is cut off.
        await delivery.requeue(subjects.shared_lane_of(delivery.subject, assignment.task.ticket.lane))
        self._telemetry.requeued(assignment)

    async def _finish(self, assignment: Assignment, result: StageResult) -> None:
        try:
            for effect in following(result):
                await self._perform(assignment, effect)
        except (BrokerRefused, RequestTooLarge) as error:  # it would be refused again
            await self._fail(assignment, error)
            return
        await self._ack(assignment)
        self._telemetry.finished(assignment, result)

    async def _fail(self, assignment: Assignment, error: Exception) -> None:
        delivery = assignment.delivery
        if isinstance(error, EngineDead):
            await self._leave(error)
        disposition = after_failure(error, assignment.task, delivered=delivery.attempts, replica=self.replica)
        if isinstance(disposition, GiveUp):
            await self._give_up(
                assignment, disposition, self._failed_attempt(assignment, error) if disposition.dead else None
            )
            return
        self._telemetry.retried(assignment, error, disposition.delay)
        task, news = assignment.task, AttemptFailed(rid=assignment.rid, attempt=self._failed_attempt(assignment, error))
        await self._perform(assignment, PublishEvent(news, assignment.rid, task.stage_id, task.ticket.run))
        if not assignment.abandoned:
            await delivery.nak(disposition.delay)

    def _failed_attempt(self, assignment: Assignment, error: Exception) -> Attempt:
        """What the request's history keeps of a failed attempt."""
        delivery, failure = assignment.delivery, Failure.of(error)
        return Attempt(
            stage_id=assignment.task.stage_id, run=assignment.task.ticket.run,
            task_seq=delivery.stream_seq, delivery=delivery.num_delivered, at=self._performer.clock.now(),
            replica=self.replica, code=failure.code, message=failure.message,
        )  # fmt: skip

    async def _give_up(self, assignment: Assignment, disposition: GiveUp, last: Attempt | None = None) -> None:
        task = assignment.task
        event = StageFailed(
            ticket=task.ticket, stage_id=task.stage_id, failure=disposition.failure, dead=disposition.dead, attempt=last
        )
        await self._perform(assignment, PublishEvent(event, assignment.rid, task.stage_id, task.ticket.run))
        await self._ack(assignment)
        self._telemetry.gave_up(assignment, disposition.failure, dead=disposition.dead)

    async def _drop(self, assignment: Assignment) -> None:
        await self._clear_orphans(assignment)
        await self._ack(assignment)
        self._telemetry.dropped(assignment)

    async def _perform(self, assignment: Assignment, effect: PublishTask | PublishEvent) -> None:
        if assignment.abandoned:
            return
        if not await self._performer.publish(effect):  # another attempt was first
            await self._clear_orphans(assignment)

    async def _clear_orphans(self, assignment: Assignment) -> None:
        """Remove what this attempt stored after its request's end, which nobody else would know of."""
        try:
            await self._performer.clear_orphans(assignment.rid)
        except BrokerError as error:  # the store's own lifetime removes it, then
            self._telemetry.left_behind(assignment, error)

    async def _ack(self, assignment: Assignment) -> None:
        if assignment.abandoned:
            return
        try:
            await assignment.delivery.ack()
            assignment.acknowledged = True
        except BrokerError:  # delivered again, then: what follows from it is published, and deduplicated
            self._telemetry.ack_failed(assignment)


def following(result: StageResult) -> Iterator[PublishTask | PublishEvent]:
    """What a worker publishes for a result, in order: the tasks of its direct edges, then the event, if it needs one."""
    yield from linear_tasks(result, forwarding=Forwarding.DIRECT)
    ticket, stage_id = result.ticket, result.stage_id
    if not needs_event(ticket.route, stage_id):
        return
    if all(_is_direct(ticket.route, target) for target in ticket.route[stage_id].targets):
        result = msgspec.structs.replace(result, outputs={})  # nobody takes them from the event
    yield PublishEvent(result, ticket.rid, stage_id, ticket.run)


def _is_direct(route: Route, target: Target) -> bool:
    return target.forwarding is Forwarding.DIRECT and not route[target.stage_id].is_join
