"""The answers of a batch while it runs: lines of JSON that one runner after the other appends, in the store of files.

A batch's subject there is the log. Every append names the message that its runner knows as the last one, so that a runner
which was thought dead adds nothing once another has begun. A death in the middle of a long line leaves part of it: the next
runner begins a new line, and the part counts for nothing.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing

from omnibus.broker.connection import Connection
from omnibus.broker.objects import CHUNK
from omnibus.broker.streamed_objects import StreamedObjects
from omnibus.errors import BrokerUnavailable
from omnibus.wire import subjects

_AT_ONCE = 64
"""Messages that one request reads."""


class AnswerLog:
    """One runner's hold on the log of a batch. Every method raises BrokerUnavailable."""

    def __init__(self, connection: Connection, batch_id: str, *, ttl: float) -> None:
        """`ttl`: seconds after which what is appended goes by itself; for a batch that nobody ends."""
        self._connection, self._name = connection, subjects.check_name(batch_id, "batch_id")
        self._store = StreamedObjects(connection, subjects.FILES_BUCKET)
        self._lifetime, self._runner = {"Nats-TTL": str(math.ceil(ttl))}, secrets.token_hex(8)
        self._last, self._ends_whole = 0, True
        self._waiting: list[bytes] = []
        self._turn = asyncio.Lock()

    async def lines(self) -> AsyncIterator[bytes]:
        """Every line that was appended, and parts of some; a runner that is to append reads all of them first."""
        known, self._last, rest = self._last, 0, bytearray()
        while chunks := await self._connection.retried(self._next_chunks):
            for sequence, chunk in chunks:
                await asyncio.sleep(0)  # others have their turn between what are many lines
                self._last = sequence
                *whole, end = chunk.split(b"\n")
                for part in whole:
                    rest += part
                    yield bytes(rest)
                    rest.clear()
                rest += end
        if self._last < known:
            raise BrokerUnavailable(f"the copy of {self._name} that was read lags behind")
        self._ends_whole = not rest

    async def _next_chunks(self) -> list[tuple[int, bytes]]:
        """Some of those behind the last one that was read."""
        async with aclosing(self._store.stored_chunks(self._name, self._last + 1, _AT_ONCE)) as found:
            return [(sequence, chunk) async for sequence, _, chunk in found]

    async def append(self, lines: bytes) -> None:
        """Append lines, the last of which ends with a line feed, too; stored when this returns, with those that came meanwhile.

        Raises RevisionConflict when another runner has appended: nothing more may come from here.
        """
        self._waiting.append(lines)
        async with self._turn:
            some, self._waiting = self._waiting, []
            if some:  # else another caller's turn had these
                await self._append(b"".join(some))

    async def _append(self, data: bytes) -> None:
        if not self._ends_whole:
            data, self._ends_whole = b"\n" + data, True
        for start in range(0, len(data), CHUNK):
            headers = {**self._lifetime, "Nats-Expected-Last-Subject-Sequence": str(self._last)}
            ack = await self._connection.js_publish(
                f"$O.{self._store.name}.C.{self._name}", data[start : start + CHUNK],
                f"{self._runner}.{self._last}", headers=headers,
            )  # fmt: skip
            self._last = ack.seq

    async def remove(self) -> None:
        """Remove the log; idempotent."""
        await self._store.purge_chunks(self._name)
