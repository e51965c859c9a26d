"""A log of lines in the store of files: what one writer after the other appends, and readers follow while it grows.

The log's subject there is its name. Every append names the message that its writer knows as the last one, so that a writer
which was thought dead adds nothing once another has begun. A death in the middle of a long line leaves part of it: the next
writer begins a new line, and the part counts for nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from typing import Self

from omnibus.broker.connection import Connection
from omnibus.broker.objects import CHUNK
from omnibus.broker.streamed_objects import StreamedObjects
from omnibus.errors import BrokerUnavailable, OmnibusError
from omnibus.wire import stores, subjects
from omnibus.wire.names import check_name

LOOK_EVERY = 2.0
"""Seconds after which a follower that no bell reaches reads all the same."""
_FIRST_LOOK = 0.01
"""Seconds after a bell for a message that is not readable yet; doubles up to LOOK_EVERY."""
_AT_ONCE = 64
"""Messages that one request reads."""


class _StoredLines:
    """Reads the lines of a log, from its beginning on."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection, self.name = connection, check_name(name, "log")
        self.store = StreamedObjects(connection, stores.FILES_BUCKET)
        self.last = 0
        """The sequence of the last message that was read, or appended."""
        self.rest = bytearray()
        """The beginning of a line whose end was not read."""

    async def next_chunks(self) -> list[tuple[int, bytes]]:
        """Some of those behind the last one that was read."""

        async def found() -> list[tuple[int, bytes]]:
            async with aclosing(self.store.stored_chunks(self.name, self.last + 1, _AT_ONCE)) as chunks:
                return [(sequence, chunk) async for sequence, _, chunk in chunks]

        return await self.connection.retried(found)

    def take(self, sequence: int, chunk: bytes) -> Iterator[bytes]:
        """The lines that end in a chunk."""
        self.last = sequence
        *whole, end = chunk.split(b"\n")
        for part in whole:
            self.rest += part
            yield bytes(self.rest)
            self.rest.clear()
        self.rest += end


@dataclass(slots=True)
class _Joined:
    """Lines of several callers, which share one write and its outcome."""

    lines: list[bytes] = field(default_factory=list)
    failure: OmnibusError | None = None


class LineLog:
    """One writer's hold on a log. Every method raises BrokerUnavailable."""

    def __init__(self, connection: Connection, name: str, *, ttl: float) -> None:
        """`ttl`: seconds after which what is appended goes by itself."""
        self._stored = _StoredLines(connection, name)
        self._lifetime, self._writer = {"Nats-TTL": str(math.ceil(ttl))}, secrets.token_hex(8)
        self._numbers = itertools.count()
        self._ends_whole = True
        self._waiting = _Joined()
        self._turn = asyncio.Lock()
        self._failure: OmnibusError | None = None
        """The failure of a write since the log was read: nobody knows how much of it is stored."""
        self.nbytes = 0
        """Bytes that were read and appended."""

    async def lines(self) -> AsyncIterator[bytes]:
        """Every line that was appended, and parts of some; a writer that is to append reads all of them first."""
        known, self._stored.last, self.nbytes = self._stored.last, 0, 0
        self._stored.rest.clear()
        self._failure = None
        while chunks := await self._stored.next_chunks():
            for sequence, chunk in chunks:
                await asyncio.sleep(0)  # others have their turn between what are many lines
                self.nbytes += len(chunk)
                for line in self._stored.take(sequence, chunk):
                    yield line
        if self._stored.last < known:
            raise BrokerUnavailable(f"the copy of {self._stored.name} that was read lags behind")
        self._ends_whole = not self._stored.rest

    async def append(self, lines: bytes) -> None:
        """Append lines, the last of which ends with a line feed, too; stored when this returns, with those that came meanwhile.

        Raises RevisionConflict when another writer has appended: nothing more may come from here. After an error every further
        append raises it, until the log is read again: part of what failed may be stored.
        """
        joined = self._waiting
        joined.lines.append(lines)
        async with self._turn:
            if joined is self._waiting:  # else another caller's turn had these
                self._waiting = _Joined()
                await self._write(joined)
        if joined.failure is not None:
            raise joined.failure

    async def _write(self, joined: _Joined) -> None:
        """Store the lines of all who wait, for whom the outcome is kept."""
        try:
            if self._failure is None:
                await self._append(b"".join(joined.lines))
        except OmnibusError as error:
            self._failure = error
        except BaseException:
            self._failure = BrokerUnavailable(f"the write to {self._stored.name} was given up half done")
            raise
        finally:
            joined.failure = self._failure

    async def _append(self, data: bytes) -> None:
        if not self._ends_whole:
            data, self._ends_whole = b"\n" + data, True
        for start in range(0, len(data), CHUNK):
            headers = {**self._lifetime, "Nats-Expected-Last-Subject-Sequence": str(self._stored.last)}
            piece = data[start : start + CHUNK]
            # Invariant: no number comes twice. An earlier piece whose acknowledgement was lost would be taken for this one.
            msg_id = f"{self._writer}.{next(self._numbers)}"
            ack = await self._stored.connection.js_publish(
                subjects.log(self._stored.name), piece, msg_id, headers=headers
            )
            self._stored.last = ack.seq
            self.nbytes += len(piece)

    async def remove(self) -> None:
        """Remove the log; idempotent."""
        await self._stored.store.purge_chunks(self._stored.name)


class LogFollower:
    """Reads a log from its beginning on, and goes on as it grows; an asynchronous context.

    Messages that arrive by themselves are only the bell: what counts is read from the stream.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self._stored, self._stack = _StoredLines(connection, name), AsyncExitStack()
        self._news = asyncio.Event()
        self._pause = _FIRST_LOOK
        self._reads_on = True

    async def __aenter__(self) -> Self:
        """Listen for appends; raises BrokerUnavailable."""
        connection = self._stored.connection
        bell = await connection.subscribe(subjects.log(self._stored.name), lambda _: self._news.set())
        self._stack.push_async_callback(bell.unsubscribe)
        self._stack.callback(connection.on_reconnect(self._news.set))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def read(self) -> list[bytes]:
        """The lines that follow; none after a silence, of LOOK_EVERY seconds at most. Raises BrokerUnavailable."""
        if not self._reads_on:
            await self._wait()
        chunks = await self._stored.next_chunks()
        self._reads_on = bool(chunks)
        if chunks:
            self._pause = _FIRST_LOOK
        return [line for sequence, chunk in chunks for line in self._stored.take(sequence, chunk)]

    async def _wait(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pause):
                await self._news.wait()
        # A bell may come before its message can be read: after it, looks are close together again.
        self._pause = _FIRST_LOOK if self._news.is_set() else min(2 * self._pause, LOOK_EVERY)
        self._news.clear()
