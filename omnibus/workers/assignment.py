"""Assignments of a replica: deliveries, the lease of each, and the announcements of them all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from typing import Any

from omnibus.broker.connection import Connection
from omnibus.broker.delivery import Delivery
from omnibus.errors import BrokerError
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.cancellations import Cancellations
from omnibus.wire import codec, subjects
from omnibus.wire.control import Cancel, Claim
from omnibus.wire.envelope import Task

RENEWALS = 3
"""Renewals in the time of one lease."""
_IN_PROGRESS = b"+WPI"


class Interruption(Enum):
    """Why a running task is stopped, and what becomes of its delivery."""

    CANCELLED = auto()
    """Its request has ended: the delivery is acknowledged and nothing is published."""
    REQUEUED = auto()
    """The replica leaves: the task is published again, then acknowledged, which uses up no attempt."""
    RELEASED = auto()
    """The engine is dead: the delivery is NAKed at once, which uses up the attempt."""
    ABANDONED = auto()
    """The lease is lost or the replica was marked down: others have the task; nothing is published or acknowledged."""


class Assignment:
    """A delivery, the task in it, its lease, and whether somebody stopped it.

    A lease is held while the server confirmed a renewal less than `ack_wait` seconds ago. Once that much time has passed,
    on this process's clock, another replica may have the task: the delivery is abandoned for good, and the holder publishes
    and acks nothing more for it.
    """

    def __init__(self, conn: Connection, delivery: Delivery, task: Task, ack_wait: float) -> None:
        self._conn, self.delivery, self.task = conn, delivery, task
        self.received = time.monotonic()
        self._ack_wait, self._until = ack_wait, self.received + ack_wait
        self.interruption: asyncio.Future[Interruption] = asyncio.get_running_loop().create_future()
        """Done as soon as somebody stops the task; the first reason counts."""
        self.work: asyncio.Task[Any] | None = None
        """Its execution; the slot is busy until that has ended."""
        self.acknowledged = False
        """Whether the message has left the queue: nobody can deliver it again."""
        self._abandoned = False

    @property
    def rid(self) -> str:
        return self.task.ticket.rid

    @property
    def abandoned(self) -> bool:
        """Whether to say nothing more about the delivery. Ask again before every step.

        Looks at the clock, so that it is right in the first instruction after the process was suspended.
        """
        self._abandoned = self._abandoned or time.monotonic() >= self._until
        return self._abandoned

    def interrupt(self, why: Interruption) -> None:
        """Stop it. Abandoning silences a task that was already stopped for another reason."""
        self._abandoned = self._abandoned or why is Interruption.ABANDONED
        if not self.interruption.done():
            self.interruption.set_result(why)

    @asynccontextmanager
    async def leased(self) -> AsyncIterator[None]:
        """Renew the lease from a task of its own; one that is lost interrupts the assignment."""
        keeper = asyncio.create_task(self._keep(), name=f"lease-{self.delivery.stream_seq}")
        try:
            yield
        finally:
            keeper.cancel()

    async def _keep(self) -> None:
        pause = self._ack_wait / RENEWALS
        while not self.abandoned:
            await asyncio.sleep(pause)
            renewed = await self._renew()
            pause = self._ack_wait / RENEWALS / (1 if renewed else 4)
        self.interrupt(Interruption.ABANDONED)

    async def _renew(self) -> bool:
        asked = time.monotonic()
        if self.abandoned:
            return False
        try:
            # A request, not a core publish: only its answer tells that the renewal arrived in time.
            await self._conn.request(self.delivery.ack_subject, _IN_PROGRESS, timeout=self._until - asked)
        except BrokerError:
            return False  # the clock decides
        self._until = asked + self._ack_wait
        return True


class Claims:
    """The assignments of one replica. Others give them back to the queue the moment it dies.

    They are announced when one is taken, when one is given up, and when asked for. One that was acknowledged needs no
    announcement: nobody can give it back any more.
    """

    def __init__(self, conn: Connection, spec: PipelineSpec, stage_id: int) -> None:
        self._conn, self._spec, self._stage_id = conn, spec, stage_id
        self._held: set[Assignment] = set()
        self._cancelled = Cancellations()
        self._empty = asyncio.Event()
        self._empty.set()
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
        assignment = Assignment(self._conn, delivery, task, self._spec.heartbeat_timeout)
        self._held.add(assignment)
        self._empty.clear()
        return assignment

    def release(self, assignment: Assignment) -> None:
        """Idempotent."""
        self._held.discard(assignment)
        if not self._held:
            self._empty.set()

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

    async def announce(self) -> None:
        """Tell everybody what the replica holds now; one core publish, which may be lost."""
        self.announced += 1
        claim = Claim(
            stage_id=self._stage_id, replica=self.replica, instance=self.instance, number=self.announced, held=self.held
        )
        await self._conn.publish(subjects.claim(self._spec.name, self._stage_id, self.replica), codec.encode(claim))
