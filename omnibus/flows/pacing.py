"""The pace of a flow: its writer stays at most a window ahead of the slowest stage that reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

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
    ) -> None:  # fmt: skip
        """A position counts for `lease` seconds; `on_silence` is called as that of a reader, while the writer is held up."""
        self._conn, self._name, self._readers, self._on_silence = conn, name, readers, on_silence
        self._lease = lease
        self._seen: dict[int, tuple[int, float]] = {}
        """The last report of each reader, by its sequence, and when it was first seen."""
        self._free_to = WINDOW
        """Bytes up to which nobody need be asked."""
        self._bell: Subscription | None = None
        self._news = asyncio.Event()
        self.is_waiting = False

    async def wait(self, offset: int) -> None:
        """Return when a writer that has come so far may go on; raises BrokerUnavailable.

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
        positions = [position for reader in self._readers if (position := await self._position(reader)) is not None]
        return min(positions) + WINDOW if positions else offset + WINDOW // 4

    async def _position(self, reader: int) -> int | None:
        """How far a stage has read; None where nobody reads, or nobody does any more."""
        body = msgspec.json.encode({"last_by_subj": self._name.position(reader)})
        message = await self._conn.retried_request(f"$JS.API.DIRECT.GET.{self._name.stream}", body)
        if status_of(message) is not None:
            return None
        seq, now = int((message.headers or {})["Nats-Sequence"]), asyncio.get_running_loop().time()
        if self._seen.get(reader, (0, 0.0))[0] != seq:
            self._seen[reader] = seq, now
        if now - self._seen[reader][1] > self._lease:
            return None
        found: ReadPosition = codec.decode(message.data, ReadPosition)
        return found.offset
