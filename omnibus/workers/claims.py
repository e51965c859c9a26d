"""What a replica has in hand, and the announcements of it."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from contextlib import suppress

from omnibus.broker.connection import Connection
from omnibus.wire import codec, subjects
from omnibus.wire.control import Claim
from omnibus.workers.assignment import Assignment, Interruption


class Claims:
    """The assignments of one replica. Others give them back to the queue the moment it dies.

    They are announced when one is taken, when one is given up, and when asked for. One that was acknowledged needs no
    announcement: nobody can give it back any more.
    """

    def __init__(self, conn: Connection, pipeline: str, stage_id: int) -> None:
        self._conn, self._pipeline, self._stage_id = conn, pipeline, stage_id
        self._held: set[Assignment] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.replica, self.instance = "", ""
        """Whose they are, and in which life of it."""
        self.announced = 0
        """How many announcements there were."""

    def __len__(self) -> int:
        return len(self._held)

    @property
    def held(self) -> tuple[tuple[str, str], ...]:
        """(request id, ack subject) of every delivery in hand; those that were abandoned belong to others."""
        return tuple((held.rid, held.delivery.ack_subject) for held in self._held if not held.abandoned)

    def take(self, assignment: Assignment) -> None:
        self._held.add(assignment)
        self._empty.clear()

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

    def cancel(self, rids: Container[str], run: int | None) -> None:
        """Stop what belongs to these requests, up to a run; None: of every run."""
        for assignment in tuple(self._held):
            if assignment.rid in rids and (run is None or assignment.task.ticket.run <= run):
                assignment.interrupt(Interruption.CANCELLED)

    async def announce(self) -> None:
        """Tell everybody what the replica holds now; one core publish, which may be lost."""
        self.announced += 1
        claim = Claim(
            stage_id=self._stage_id, replica=self.replica, instance=self.instance, number=self.announced, held=self.held
        )
        await self._conn.publish(subjects.claim(self._pipeline, self._stage_id, self.replica), codec.encode(claim))
