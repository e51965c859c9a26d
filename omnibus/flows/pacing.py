"""The pace of a flow: who writes it stays at most a window ahead of the slowest stage that reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime

import msgspec

from omnibus.broker.connection import Connection, Subscription, status_of
from omnibus.flows.flow_name import FlowName
from omnibus.flows.reader import LEASE, LOOK_EVERY, SILENT_LOOKS, OnSilence
from omnibus.wire import codec
from omnibus.wire.chunk import ReadPosition

WINDOW = 8 << 20
"""Bytes that a writer may be ahead."""


class Pacing:
    """Holds up the writer of one flow, which these stages read. A short flow costs no message."""

    def __init__(
        self, conn: Connection, name: FlowName, readers: Sequence[int],
        *, lease: float = LEASE, on_silence: OnSilence | None = None,
        goes_on_unread: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:  # fmt: skip
        """A position counts for `lease` seconds; `on_silence` is called as that of a reader, while the writer is held up.

        `goes_on_unread` says whether the writer may go on where nobody reads; without it, it may.
        """
        self._conn, self._name, self._readers, self._on_silence = conn, name, readers, on_silence
        self._lease, self._goes_on_unread = lease, goes_on_unread
        self._free_to = WINDOW
        """Bytes up to which nobody need be asked."""
        self._bell: Subscription | None = None
        self._news = asyncio.Event()
        self.is_waiting = False

    async def wait(self, offset: int) -> None:
        """Return when a writer that has come so far may go on; raises BrokerUnavailable, and what the callbacks raise.

        A reader that has died holds it up for a lease, and then the next one when it begins. In between the writer goes on, up
        to the flow's bound: its slot may be what the next reader, or the source of another flow, waits for.
        """
        if not self._readers:
            return
        looks = 0
        try:
            while offset >= self._free_to:
                looks += 1
                if self._on_silence is not None and looks % SILENT_LOOKS == 0:
                    await self._on_silence()
                if self._bell is None:
                    self._bell = await self._conn.subscribe(self._name.position("*"), lambda _: self._news.set())
                self._news.clear()
                self._free_to = await self._allowed(offset)
                if offset >= self._free_to:
                    self.is_waiting = True
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_EVERY):
                            await self._news.wait()
        finally:
            self.is_waiting = False

    async def close(self) -> None:
        """Listen no more; idempotent."""
        if self._bell is not None:
            await self._bell.unsubscribe()
            self._bell = None

    async def _allowed(self, offset: int) -> int:
        """Bytes up to which a writer may go on, by those who read; without any it looks for them now and then."""
        found = [position for reader in self._readers if (position := await self._position(reader)) is not None]
        if reading := [done for done, is_current in found if is_current]:
            return min(reading) + WINDOW
        last = max((done for done, _ in found), default=0) + WINDOW
        if offset < last:  # a reader that has nothing to do tells nothing
            return last
        goes_on = self._goes_on_unread is None or await self._goes_on_unread()
        return offset + WINDOW // 4 if goes_on else offset

    async def _position(self, reader: int) -> tuple[int, bool] | None:
        """How far a stage has read, and whether it reported that within a lease; None where none has begun."""
        body = msgspec.json.encode({"last_by_subj": self._name.position(reader)})
        message = await self._conn.retried_request(f"$JS.API.DIRECT.GET.{self._name.stream}", body)
        if status_of(message) is not None:
            return None
        found: ReadPosition = codec.decode(message.data, ReadPosition)
        stored = datetime.fromisoformat((message.headers or {})["Nats-Time-Stamp"]).timestamp()
        return found.offset, self._conn.clock.now() - stored <= self._lease
