"""The lease keeper: one timer a replica renews the leases of what it runs, and stops what is over its time."""

from __future__ import annotations

import asyncio
import math
import time
from functools import partial
from typing import Any

from omnibus.broker.connection import Connection
from omnibus.errors import BrokerError
from omnibus.requests.record import BEYOND_DEADLINE
from omnibus.workers.assignment import Assignment, Interruption

RENEWALS = 3
"""Renewals in the time of one lease."""
_IN_PROGRESS = b"+WPI"
_SHORTEST = 0.001  # the loop's clock counts milliseconds


class LeaseKeeper:
    """Keeps leases of `lease` seconds; `limit` is how many an execution may take, 0: any."""

    def __init__(self, conn: Connection, *, lease: float, limit: float) -> None:
        self._conn, self._lease, self._limit = conn, lease, limit or math.inf
        self._kept: set[Assignment] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def keep(self, assignment: Assignment) -> None:
        """Renew its lease from here on, and interrupt it when the lease is lost."""
        assignment.renew_at = time.monotonic() + self._lease / RENEWALS
        self._kept.add(assignment)
        self._wake_at(assignment.due)

    def limit(self, assignment: Assignment) -> None:
        """Count its time from here on, and interrupt it when that is over."""
        left = max(assignment.task.ticket.deadline - self._conn.clock.now() + BEYOND_DEADLINE, 0.0)
        assignment.limit = time.monotonic() + min(left, self._limit)
        assignment.limit_reached = Interruption.CANCELLED if left <= self._limit else Interruption.TIMED_OUT
        self._wake_at(assignment.limit)

    def drop(self, assignment: Assignment) -> None:
        """Idempotent."""
        self._kept.discard(assignment)

    def _wake_at(self, moment: float) -> None:
        """Have the timer fire at a moment, unless it does before. It fires once for nothing when that one was dropped."""
        if moment >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = moment
        delay = max(moment - time.monotonic(), _SHORTEST)
        self._timer = asyncio.get_running_loop().call_later(delay, self._attend)

    def _attend(self) -> None:
        self._timer, self._timer_at = None, math.inf
        now = time.monotonic()
        for assignment in tuple(self._kept):
            if assignment.abandoned:
                self.drop(assignment)
                assignment.interrupt(Interruption.ABANDONED)
                continue
            if now >= assignment.limit:
                assignment.limit = math.inf
                assignment.interrupt(assignment.limit_reached)
            if now >= assignment.renew_at:
                self._renew(assignment, now)
        if self._kept:
            self._wake_at(min(assignment.due for assignment in self._kept))

    def _renew(self, assignment: Assignment, now: float) -> None:
        """Ask for it: only the answer of a request, which a core publish has none of, tells that it came in time."""
        assignment.renew_at = math.inf
        left = assignment.held_until - now
        try:
            answer = self._conn.ask(assignment.delivery.ack_subject, _IN_PROGRESS, timeout=left)
        except BrokerError:
            self._retry(assignment)
        else:
            answer.add_done_callback(partial(self._renewed, assignment, now))

    def _renewed(self, assignment: Assignment, asked: float, answer: asyncio.Future[Any]) -> None:
        if answer.cancelled() or answer.exception() is not None:
            self._retry(assignment)
        else:
            assignment.held_until = asked + self._lease
            assignment.renew_at = asked + self._lease / RENEWALS
        if assignment in self._kept:
            self._wake_at(assignment.due)

    def _retry(self, assignment: Assignment) -> None:
        """Ask again soon; the clock decides whether there is time for that."""
        assignment.renew_at = time.monotonic() + self._lease / RENEWALS / 4
