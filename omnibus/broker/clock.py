"""The server's time, which all deadlines are in: the server fires the timers, and clocks of other hosts may be off.

Measured once a connection and now and then afterwards, against this process's monotonic clock: stepping the host's own clock
changes nothing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime

import msgspec

from omnibus.broker.replies import ReceivedMessage
from omnibus.errors import BrokerError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger

ASK = "$SYS.REQ.USER.INFO"
"""Subject of a question that any client may ask its server; the answer bears a time."""
EVERY = 30.0
"""Seconds between measurements: a server's clock may be stepped too."""
TRY_EVERY = 1.0
"""The same until the first one."""
ASK_TIMEOUT = 1.0
"""Seconds for an answer. It tells the time to within half of what it took."""

Ask = Callable[[], Awaitable[ReceivedMessage]]

log = get_logger(__name__)


class _ServerTime(msgspec.Struct):
    time: datetime


class _TimeAnswer(msgspec.Struct):
    server: _ServerTime


class ServerClock:
    """Tells the server's time, seconds since the epoch: until it was measured, and where no server tells, the host's own."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._ahead = time.time() - time.monotonic()  # of the monotonic clock
        self._took = math.inf
        self._due = asyncio.Event()
        self.measured = False
        """Whether it is the server's time, and no longer the host's."""

    def now(self) -> float:
        """The server's time now."""
        return time.monotonic() + self._ahead

    def at(self, moment: float) -> float:
        """The server's time at a moment that the host's own clock has shown or will show."""
        return self.now() + moment - time.time()

    def hurry(self) -> None:
        """Measure again soon: the connection is to another server, perhaps."""
        self._due.set()

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Measured when entered, and again and again for as long as the context lasts."""
        await self._measure()
        keeping = asyncio.create_task(self._keep(), name="server-clock")
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.wait([keeping], timeout=ASK_TIMEOUT)

    async def _keep(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY if self.measured else TRY_EVERY):
                    await self._due.wait()
            self._due.clear()
            await self._measure()

    async def _measure(self) -> None:
        asked = time.monotonic()
        try:
            answer = msgspec.json.decode((await self._ask()).data, type=_TimeAnswer)
        except (BrokerError, msgspec.DecodeError) as error:  # an outage, or a server that does not tell
            if not self.measured:
                log.warning(LogEvent.BROKER_ERROR, clock="the host's own", error=str(error))
            return
        self._learn(answer.server.time.timestamp(), asked, time.monotonic())
        self.measured = True

    def _learn(self, server_time: float, asked: float, received_at: float) -> None:
        """Take a measurement, unless a sharper one is known that may still be true as far as this one can tell."""
        took, ahead = received_at - asked, server_time - (asked + received_at) / 2
        if took > self._took and abs(ahead - self._ahead) <= took / 2:
            return
        self._took, self._ahead = took, ahead
