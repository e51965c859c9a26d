"""An assignment: a delivery in the hands of a replica, with its lease."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from enum import Enum, auto

from omnibus.broker.delivery import Delivery
from omnibus.wire.envelope import Task


class Interruption(Enum):
    """Why a running task is stopped, and what becomes of its delivery."""

    CANCELLED = auto()
    """Its request has ended: the delivery is acknowledged and nothing is published."""
    REQUEUED = auto()
    """The replica leaves: the task is published again, then acknowledged, which uses up no attempt."""
    RELEASED = auto()
    """The engine is dead: the delivery is NAKed at once, which uses up the attempt."""
    TIMED_OUT = auto()
    """It took longer than its stage allows: a failed attempt."""
    ABANDONED = auto()
    """The lease is lost or the replica was marked down: others have the task; nothing is published or acknowledged."""


class Assignment:
    """A delivery, the task in it, its lease and its time limit, and whether somebody stopped it.

    A lease is held while the server confirmed a renewal less than its length ago. Once that much time has passed, on this
    process's clock, another replica may have the task: the delivery is abandoned for good, and the holder publishes and acks
    nothing more for it. Moments are those of `time.monotonic`.
    """

    __slots__ = (
        "_abandoned", "acknowledged", "delivery", "held_until", "interruption", "limit", "limit_reached", "on_interrupt",
        "received", "renew_at", "rid", "task", "work",
    )  # fmt: skip

    def __init__(self, delivery: Delivery, task: Task, lease: float) -> None:
        self.delivery, self.task, self.rid = delivery, task, task.ticket.rid
        self.received = time.monotonic()
        self.held_until = self.received + lease
        self.renew_at = self.limit = math.inf
        self.limit_reached = Interruption.CANCELLED
        """The reason that it is interrupted for at the `limit`."""
        self.interruption: Interruption | None = None
        """Why it was stopped; the first reason counts."""
        self.on_interrupt: Callable[[Assignment, Interruption], None] | None = None
        """Called when it is stopped, while its engine works on it."""
        self.work: asyncio.Task[None] | None = None
        """The asyncio task that sees it through; the slot is busy until that has ended."""
        self.acknowledged = False
        """Whether the message has left the queue: nobody can deliver it again."""
        self._abandoned = False

    @property
    def abandoned(self) -> bool:
        """Whether to say nothing more about the delivery. Ask again before every step.

        Looks at the clock, so that it is right in the first instruction after the process was suspended.
        """
        self._abandoned = self._abandoned or time.monotonic() >= self.held_until
        return self._abandoned

    @property
    def due(self) -> float:
        """The next moment at which its lease or its limit needs attention."""
        return min(self.renew_at, self.held_until, self.limit)

    def interrupt(self, why: Interruption) -> None:
        """Stop it. Abandoning silences a task that was already stopped for another reason."""
        self._abandoned = self._abandoned or why is Interruption.ABANDONED
        if self.interruption is None:
            self.interruption = why
            if self.on_interrupt is not None:
                self.on_interrupt(self, why)
