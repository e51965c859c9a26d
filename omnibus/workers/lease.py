"""The lease of one delivery: kept up while its job runs, and final once lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from omnibus.broker.connection import Connection
from omnibus.broker.delivery import Delivery
from omnibus.errors import BrokerError

RENEWALS = 3
"""Renewals in the time of one lease."""
_IN_PROGRESS = b"+WPI"


class Lease:
    """Renews a delivery's lease from a task of its own, in an `async with`.

    A lease is held while the server confirmed a renewal less than `ack_wait` seconds ago. Once that much time has passed,
    on this process's clock, another replica may have the task: the lease is lost for good, `on_lost` is called, and
    whoever holds it publishes and acks nothing more for this delivery. `held` looks at the clock itself, so that it is
    right in the first instruction after the process was suspended.
    """

    def __init__(self, conn: Connection, delivery: Delivery, ack_wait: float, *, on_lost: Callable[[], None]) -> None:
        self._conn, self._delivery = conn, delivery
        self._ack_wait = ack_wait
        self._on_lost = on_lost
        self._until = time.monotonic() + ack_wait
        self._lost = False
        self._keeper: asyncio.Task[None] | None = None

    @property
    def held(self) -> bool:
        if time.monotonic() >= self._until:
            self._lost = True
        return not self._lost

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._keep(), name=f"lease-{self._delivery.stream_seq}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keeper is not None:
            self._keeper.cancel()

    async def _keep(self) -> None:
        pause = self._ack_wait / RENEWALS
        while self.held:
            await asyncio.sleep(pause)
            renewed = await self._renew()
            pause = self._ack_wait / RENEWALS / (1 if renewed else 4)
        self._on_lost()

    async def _renew(self) -> bool:
        asked = time.monotonic()
        if not self.held:
            return False
        try:
            # A request, not Delivery.in_progress: only its answer tells that the renewal arrived in time.
            await self._conn.request(self._delivery.ack_subject, _IN_PROGRESS, timeout=self._until - asked)
        except BrokerError:
            return False  # the clock decides
        self._until = asked + self._ack_wait
        return True
