"""One task in the hands of a replica."""

from __future__ import annotations

import asyncio
import time
from enum import Enum, auto

from omnibus.broker.connection import Connection
from omnibus.broker.delivery import Delivery
from omnibus.wire.envelope import Task
from omnibus.workers.lease import Lease


class Interruption(Enum):
    """Why a running task is stopped, and what becomes of its delivery."""

    CANCELLED = auto()
    """Its request has ended: the delivery is acknowledged and nothing is published."""
    REQUEUED = auto()
    """The replica leaves: the task is published again, then acknowledged, which uses up no attempt."""
    RELEASED = auto()
    """The engine is dead: the delivery is given back at once, which uses up the attempt."""
    ABANDONED = auto()
    """The lease is lost or the replica was declared down: others have the task; nothing is published or acknowledged."""


class Assignment:
    """A delivery, the task in it, its lease, and whether somebody stopped it."""

    def __init__(self, conn: Connection, delivery: Delivery, task: Task, ack_wait: float) -> None:
        self.delivery, self.task = delivery, task
        self.received = time.monotonic()
        self.lease = Lease(conn, delivery, ack_wait, on_lost=lambda: self.interrupt(Interruption.ABANDONED))
        self.interruption: asyncio.Future[Interruption] = asyncio.get_running_loop().create_future()
        """Done as soon as somebody stops the task; the first reason counts."""
        self.acknowledged = False
        """Whether the message has left the queue: nobody can deliver it again."""
        self._abandoned = False

    @property
    def rid(self) -> str:
        return self.task.ticket.rid

    @property
    def abandoned(self) -> bool:
        """Whether to say nothing more about the delivery. Looks at the clock: ask again before every step."""
        return self._abandoned or not self.lease.held

    def interrupt(self, why: Interruption) -> None:
        """Stop it. Abandoning silences a task that was already stopped for another reason."""
        self._abandoned = self._abandoned or why is Interruption.ABANDONED
        if not self.interruption.done():
            self.interruption.set_result(why)
