"""The claims of a replica: its assignments, announced so that others requeue them the moment it dies."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from omnibus.broker.connection import Connection
from omnibus.broker.delivery import Delivery
from omnibus.errors import BrokerUnavailable
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.cancellations import Cancellations
from omnibus.wire import codec, subjects
from omnibus.wire.control import Cancel, Claim, ClaimChange
from omnibus.wire.envelope import Task
from omnibus.workers.assignment import Assignment, Interruption

TICK = 0.005
"""Seconds, at most, in which changes wait for others, to be announced together. A task that is done by then is never
announced; one whose replica dies meanwhile comes again when its lease ends."""
_LONG = 4 * TICK
"""Mean time in hand, seconds, from which a message costs little beside a task: claims are announced at once."""
_MEMORY = 8  # tasks that the mean is of, about


class Claims:
    """The assignments of one replica.

    Changes are announced as such, and numbered; the whole list when it is asked for, and in every heartbeat. What was
    acknowledged is announced with the next change: nobody can give it back any more.
    """

    def __init__(self, conn: Connection, spec: PipelineSpec, stage_id: int) -> None:
        self._conn, self._spec, self._stage_id = conn, spec, stage_id
        self._held: set[Assignment] = set()
        self._taken: dict[Assignment, tuple[str, str]] = {}
        """(request id, ack subject) of what was taken and is not announced yet."""
        self._released: list[str] = []
        """Ack subjects of what is not held any more, though others may think so."""
        self._is_urgent = False
        """Whether one of those is delivered again: a stale claim would have it taken from its next replica."""
        self._tick: asyncio.TimerHandle | None = None
        self._mean = 0.0
        self._cancelled = Cancellations()
        self._empty = asyncio.Event()
        self._empty.set()
        self._is_silent = False
        self.replica, self.instance = "", ""
        """Id and instance of the replica that has the claims."""
        self.announced = 0
        """How many announcements there were."""

    def __len__(self) -> int:
        return len(self._held)

    @property
    def held(self) -> tuple[tuple[str, str], ...]:
        """(request id, ack subject) of every delivery in hand; those that were abandoned belong to others."""
        return tuple((held.rid, held.delivery.ack_subject) for held in self._held if not held.abandoned)

    def take(self, delivery: Delivery, task: Task) -> Assignment:
        """Have a task in hand from here on."""
        assignment = Assignment(delivery, task, self._spec.heartbeat_timeout)
        self._held.add(assignment)
        self._taken[assignment] = assignment.rid, delivery.ack_subject
        self._empty.clear()
        self._announce_soon()
        return assignment

    def release(self, assignment: Assignment) -> None:
        """Idempotent."""
        if assignment not in self._held:
            return
        self._held.discard(assignment)
        self._mean += (time.monotonic() - assignment.received - self._mean) / _MEMORY
        if not self._held:
            self._empty.set()
        if self._taken.pop(assignment, None) is None or not assignment.acknowledged:
            self._released.append(assignment.delivery.ack_subject)
        if not assignment.acknowledged:
            self._is_urgent = True
            self._announce_soon()

    async def wait_empty(self, timeout: float) -> None:
        """Return when nothing is in hand, after `timeout` seconds at the latest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._empty.wait()

    def interrupt(self, why: Interruption) -> None:
        """Stop all that is in hand."""
        for assignment in tuple(self._held):
            assignment.interrupt(why)

    def cancel(self, order: Cancel) -> None:
        """Stop what belongs to these requests, and what still arrives of them."""
        self._cancelled.add(order.rids, order.until, run=order.run)
        for assignment in tuple(self._held):
            if assignment.rid in order.rids and (order.run is None or assignment.task.ticket.run <= order.run):
                assignment.interrupt(Interruption.CANCELLED)

    def is_cancelled(self, assignment: Assignment) -> bool:
        """Whether its request was cancelled, maybe before it arrived."""
        return self._cancelled.holds(assignment.rid, self._conn.clock.now(), run=assignment.task.ticket.run)

    def goes_on(self, rid: str) -> bool:
        """Whether a delivery of this request is in hand that nobody has stopped."""
        return any(held.rid == rid and held.interruption is None for held in self._held)

    def silence(self) -> None:
        """Announce nothing more: the replica dies, and others requeue what it has."""
        self._is_silent = True

    def announce(self) -> None:
        """Announce all that the replica holds now; one core publish, which may be lost. Raises BrokerUnavailable."""
        self._publish(Claim(held=self.held, **self._next()))

    def _announce_soon(self) -> None:
        if self._tick is None:
            delay = TICK if self._mean < _LONG else 0.0
            self._tick = asyncio.get_running_loop().call_later(delay, self._announce_changes)

    def _announce_changes(self) -> None:
        self._tick = None
        if self._taken or self._is_urgent:
            taken, released = tuple(self._taken.values()), tuple(self._released)
            with suppress(BrokerUnavailable):  # a receiver that misses its number asks
                self._publish(ClaimChange(taken=taken, released=released, **self._next()))

    def _next(self) -> dict[str, Any]:
        """The fields that every announcement has; after it nothing waits for the next one."""
        self.announced += 1
        self._taken.clear()
        self._released.clear()
        self._is_urgent = False
        return {
            "stage_id": self._stage_id, "replica": self.replica, "instance": self.instance, "number": self.announced,
        }  # fmt: skip

    def _publish(self, message: Claim | ClaimChange) -> None:
        if not self._is_silent:
            self._conn.send(subjects.claim(self._spec.name, self._stage_id, message.replica), codec.encode(message))
