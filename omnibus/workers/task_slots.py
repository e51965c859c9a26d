"""The slots of a replica: tasks come in while its gate is open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from omnibus.broker.puller import Puller
from omnibus.errors import InvalidRequest
from omnibus.registry.pause_state import PauseMode
from omnibus.registry.presence.replica_record import ReplicaStatus
from omnibus.workers.assignment import Assignment, Interruption
from omnibus.workers.claims import Claims

SetStatus = Callable[[ReplicaStatus], Awaitable[None]]


class TaskSlots:
    """Gives the puller credit for free slots, or keeps it back.

    A paused replica is registered as draining: nothing is directed to it, and the tasks in its own lane are rerouted.
    """

    def __init__(self, slots: int, claims: Claims, set_status: SetStatus) -> None:
        self._slots, self._claims, self._set_status = slots, claims, set_status
        self._puller: Puller | None = None
        self._in_hand = 0
        self._coming = 0
        """Tasks that the puller had when the gate was closed, and that nobody has taken from it yet."""
        self._stops_tasks = False
        self._changed = asyncio.Event()
        self.paused = False

    async def open(self, puller: Puller) -> None:
        """Take tasks from this puller, unless the replica is paused."""
        self._puller, self._coming = puller, 0
        if self.paused:
            await self._set_status(ReplicaStatus.DRAINING)
        else:
            await self._let_in(puller)

    def close(self) -> None:
        """Take no more tasks; until it is opened again, the replica can be neither paused nor resumed."""
        self._puller = None

    def taken(self) -> None:
        """A task has come in."""
        self._in_hand += 1
        self._coming = max(0, self._coming - 1)

    def admit(self, assignment: Assignment) -> None:
        """It is a proper one; had it been under way when the gate was closed, it may have to go back."""
        if self.paused and self._stops_tasks:
            assignment.interrupt(Interruption.REQUEUED)

    def borrow(self) -> bool:
        """Take a slot for what is no task, unless a task is in hand; whether there was one. Returned by `freed`."""
        if self._puller is None or self.paused or self._in_hand:
            return False
        free = self._puller.withdraw()
        self._puller.add_credit(max(free - 1, 0))  # a task that is under way for the slot is requeued
        self._in_hand += min(free, 1)
        return free > 0

    def freed(self) -> None:
        """It is done with: its slot is free again."""
        self._in_hand -= 1
        self._changed.set()
        if self._puller is not None and not self.paused:
            self._puller.add_credit(1)

    async def pause(self, mode: PauseMode) -> None:
        """Take no more tasks, and return when none is in hand; idempotent. Raises InvalidRequest when it leaves."""
        puller = self._opened()
        if not self.paused:
            self.paused = True
            self._coming = self._slots - self._in_hand - puller.withdraw()
            await self._set_status(ReplicaStatus.DRAINING)
        self._stops_tasks = mode is PauseMode.ABORT
        if self._stops_tasks:
            self._claims.interrupt(Interruption.REQUEUED)
        while self.paused and self._in_hand + self._coming > 0:
            self._changed.clear()
            await self._changed.wait()

    async def resume(self) -> None:
        """Take tasks again; idempotent. Raises InvalidRequest when the replica leaves."""
        puller = self._opened()
        if self.paused:
            self.paused = False
            self._changed.set()  # a caller that still waits for the pause need not any more
            await self._let_in(puller)

    async def _let_in(self, puller: Puller) -> None:
        puller.add_credit(self._slots - self._in_hand - self._coming)
        await self._set_status(ReplicaStatus.UP)

    def _opened(self) -> Puller:
        if self._puller is None:
            raise InvalidRequest("the replica is not up, or leaves")
        return self._puller
