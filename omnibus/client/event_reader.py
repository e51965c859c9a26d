"""The events of one request, one by one, for a caller that may give up waiting and come back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Self

from omnibus.client.request_events import ClientEvent


class EventReader:
    """Iterates over events that come in batches.

    Invariant: a task waits for the next batch, and no caller does: a generator that is cancelled is over.
    """

    def __init__(self, batches: AsyncGenerator[list[ClientEvent], None]) -> None:
        self._batches = batches
        self._ready: deque[ClientEvent] = deque()
        self._reading: asyncio.Task[list[ClientEvent] | None] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ClientEvent:
        while not self._ready:
            if (reading := self._reading) is None:
                reading = self._reading = asyncio.create_task(self._read(), name="events")
            await asyncio.wait({reading})
            if self._reading is not reading:  # another caller took what it read
                continue
            self._reading = None
            if (batch := reading.result()) is None:
                raise StopAsyncIteration
            self._ready.extend(batch)
        return self._ready.popleft()

    async def _read(self) -> list[ClientEvent] | None:
        return await anext(self._batches, None)

    async def aclose(self) -> None:
        """Follow no more."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})
            if not reading.cancelled():
                reading.exception()  # nobody has asked for it
        await self._batches.aclose()
