"""The life of one task in a replica: taken, decided about, run, concluded. Never in another order."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from omnibus.broker.delivery import Delivery
from omnibus.errors import BrokerUnavailable, EngineError, InvalidRequest, OmnibusError
from omnibus.wire import subjects
from omnibus.wire.envelope import StageResult
from omnibus.workers.assignment import Assignment, Interruption
from omnibus.workers.attempt_decision import Disposition, decode_task, disposition_of, exhausted, is_last_attempt
from omnibus.workers.claims import Claims
from omnibus.workers.engine_health import EngineHealth
from omnibus.workers.execution import Execution
from omnibus.workers.lease_keeper import LeaseKeeper
from omnibus.workers.task_conclusion import TaskConclusion
from omnibus.workers.task_slots import TaskSlots
from omnibus.workers.task_telemetry import TaskTelemetry

ABORT_TIMEOUT = 5.0
"""Seconds for an engine to end a stopped job."""
OTHERS_ARRIVE = 0.1
"""Seconds before a last attempt begins, in which others that came with it arrive."""
_MOST_WAITS = 100
"""How many times as long it waits at the most, until those are put back."""
_PUT_BACK = 0.25
"""Seconds for which a slot rests whose task was put back: it might come here again at once."""


class TaskService:
    """Sees the tasks of one replica through, each in one asyncio task; a second one concludes what is stopped.

    Invariant: a slot is free again when nothing works on its task any more, be it stopped or not.
    """

    def __init__(
        self, stage_id: int, execution: Execution, conclusion: TaskConclusion,
        *, claims: Claims, slots: TaskSlots, leases: LeaseKeeper, telemetry: TaskTelemetry, health: EngineHealth,
    ) -> None:  # fmt: skip
        self._stage_id, self._execution, self._conclusion = stage_id, execution, conclusion
        self._claims, self._slots, self._leases = claims, slots, leases
        self._telemetry, self._health = telemetry, health
        self._tasks: set[asyncio.Task[None]] = set()
        """Those that conclude a task; the work of one that was stopped is among `_stopped`."""
        self._stopped: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._isolated: Assignment | None = None
        """The task at its last attempt that runs here."""
        self._last_attempts: set[Assignment] = set()
        """Tasks at their last attempts that are in hand, those left out that are put back."""

    def take(self, delivery: Delivery) -> None:
        """See a delivery through. It is in hand from here on, so that no drain overlooks it."""
        self._slots.taken()
        try:
            task = decode_task(delivery.data, delivery.subject, self._stage_id)
        except InvalidRequest as error:
            self._start(self._reject(delivery, error), f"reject-{delivery.stream_seq}")
            return
        assignment = self._claims.take(delivery, task)
        if is_last_attempt(task, delivery.attempts):
            self._last_attempts.add(assignment)
        self._slots.admit(assignment)
        assignment.work = self._start(self._see_through(assignment), f"task-{delivery.stream_seq}")

    async def concluded(self) -> None:
        """Return when all that was in hand is concluded; an engine that still runs a stopped job is not waited for."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Leave all that is in hand to others, as a death would: it stays claimed, and nothing is published for it."""
        self._is_closed = True
        self._claims.silence()
        tasks = self._tasks | self._stopped
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=ABORT_TIMEOUT)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _reject(self, delivery: Delivery, error: InvalidRequest) -> None:
        try:
            await self._conclusion.reject(delivery, error)
        except Exception:  # noqa: BLE001 logged and counted
            self._telemetry.crashed("worker")  # not acknowledged: delivered again when its lease runs out
        finally:
            self._free()

    async def _see_through(self, assignment: Assignment) -> None:
        """The root of one task: whatever happens to it stays here."""
        try:
            await self._serve(assignment)
        except BrokerUnavailable:  # an outage: its delivery comes again
            self._telemetry.ack_failed(assignment)
        except Exception:  # noqa: BLE001 logged and counted
            self._telemetry.crashed("worker")  # not acknowledged: delivered again when its lease runs out
        finally:
            if assignment.work in self._tasks:  # else it was stopped
                self._release(assignment)
                self._free()

    async def _serve(self, assignment: Assignment) -> None:
        """Decide about a task, and see it through; raises BrokerError when it must be left to be delivered again."""
        task, delivered = assignment.task, assignment.delivery.attempts
        match disposition_of(
            task, delivered=delivered, now=self._conclusion.clock.now(),
            cancelled=self._claims.is_cancelled(assignment),
            redelivered=self._is_redelivered(assignment), has_last_attempt=self._isolated is not None,
        ):  # fmt: skip
            case Disposition.DROP:
                await self._conclusion.drop(assignment)
            case Disposition.EXHAUSTED:
                failed = exhausted(task, delivered=delivered, replica=self._claims.replica)
                await self._conclusion.give_up(assignment, failed)
            case Disposition.REROUTE:
                await self._conclusion.requeue(assignment)
            case Disposition.PUT_BACK:
                await self._conclusion.requeue(assignment)
                self._last_attempts.discard(assignment)
                await asyncio.sleep(_PUT_BACK)
            case Disposition.RUN_ISOLATED:
                self._isolated = assignment
                await self._run(assignment)
            case Disposition.RUN:
                await self._run(assignment)

    def _is_redelivered(self, assignment: Assignment) -> bool:
        delivery = assignment.delivery
        return delivery.num_delivered > 1 and subjects.parse_task(delivery.subject).lane == self._claims.replica

    async def _run(self, assignment: Assignment) -> None:
        self._telemetry.received(assignment)
        self._leases.keep(assignment)
        try:
            if assignment is self._isolated:
                await self._wait_for_others(assignment)
            outcome = self._unbegun(assignment) or await self._attempt(assignment)
            if outcome is not None:
                await self._conclusion.conclude(assignment, outcome)
                await self._conclusion.clear_abandoned(assignment)
        finally:
            self._telemetry.released(assignment)

    async def _wait_for_others(self, assignment: Assignment) -> None:
        """Wait until the others that came with a last attempt are put back, or until it is stopped."""
        for _ in range(_MOST_WAITS):
            await asyncio.sleep(OTHERS_ARRIVE)
            if assignment.interruption is not None or self._last_attempts == {assignment}:
                return

    @staticmethod
    def _unbegun(assignment: Assignment) -> Interruption | None:
        """Why it was stopped before it began, if it was: then the death of the engine uses up no attempt."""
        why = assignment.interruption
        return Interruption.REQUEUED if why is Interruption.RELEASED else why

    async def _attempt(self, assignment: Assignment) -> StageResult | OmnibusError | None:
        """Have the engine do it, in this very task; None when it was stopped, which `_conclude_stopped` concludes."""
        self._leases.limit(assignment)
        assignment.on_interrupt = self._stop
        try:
            outcome = await self._execution.run(assignment.task, assignment.delivery, replica=self._claims.replica)
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if assignment.on_interrupt is None or self._is_closed or me is None:
                raise
            me.uncancel()
            outcome = EngineError("the stage's code cancelled the task that runs it")
        if assignment.on_interrupt is None:
            return None
        assignment.on_interrupt = None
        return outcome

    def _stop(self, assignment: Assignment, why: Interruption) -> None:
        """Conclude a task that its engine works on, whether or not that ends the job."""
        assignment.on_interrupt, work = None, assignment.work
        assert work is not None, "it runs"
        self._tasks.discard(work)
        self._stopped.add(work)
        self._start(self._conclude_stopped(assignment, work, why), f"stop-{assignment.rid}")

    async def _conclude_stopped(self, assignment: Assignment, work: asyncio.Task[None], why: Interruption) -> None:
        try:
            if why is Interruption.CANCELLED:
                await self._halt(assignment, work)  # first: what it still stores is cleared up in the end
            await self._conclusion.conclude(assignment, why)
        except BrokerUnavailable:  # an outage: its delivery comes again
            self._telemetry.ack_failed(assignment)
        except Exception:  # noqa: BLE001 logged and counted
            self._telemetry.crashed("worker")
        finally:
            await self._halt(assignment, work)
            await self._conclusion.clear_abandoned(assignment)
            self._release(assignment)
            work.add_done_callback(self._let_go)

    async def _halt(self, assignment: Assignment, work: asyncio.Task[None]) -> None:
        """Have the engine end a job; returns when it has, or after a while: its slot stays busy then.

        Engines abort by request: where another delivery of it goes on here, this job is cancelled alone.
        """
        if work.done() or work.cancelling():
            return
        try:
            if self._health.death is None and not self._claims.goes_on(assignment.rid):
                async with asyncio.timeout(ABORT_TIMEOUT):
                    await self._execution.engine.abort(assignment.rid)
        except Exception:  # noqa: BLE001 logged and counted: an engine that fails or hangs here must not keep the task
            self._telemetry.crashed("abort")
        finally:
            work.cancel()
        if self._health.death is None:
            await asyncio.wait({work}, timeout=ABORT_TIMEOUT)

    def _let_go(self, work: asyncio.Task[None]) -> None:
        """Nothing works on a stopped task any more."""
        self._stopped.discard(work)
        self._free()

    def _release(self, assignment: Assignment) -> None:
        """It is not in hand any more."""
        self._leases.drop(assignment)
        self._last_attempts.discard(assignment)
        if assignment is self._isolated:
            self._isolated = None
        self._claims.release(assignment)

    def _free(self) -> None:
        self._health.check()
        self._slots.freed()
