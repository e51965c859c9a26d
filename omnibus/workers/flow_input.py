"""A flow as the code of a stage reads it: on any event loop, in any thread, and from its first chunk again when it restarts."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, Self, TypeVar

from omnibus.errors import EngineError, OmnibusError
from omnibus.flows.decisions import FlowPart
from omnibus.flows.reader import FlowReader
from omnibus.payloads.store import PayloadStore
from omnibus.wire.chunk import FlowEnd
from omnibus.wire.payload import Payloads
from omnibus.workers.engines.protocol import Flow, Outputs

T = TypeVar("T")
_TOGETHER = 64
"""Chunks that the code of a stage gets from the replica's loop at once; those that are not in the messages come alone."""


class FlowInput:
    """Reads the flow of one source for one task, over as many runs of the engine as it takes. An asynchronous context."""

    reads_rest = True
    """Whether the rest of the flow is read that the stage leaves."""

    def __init__(self, reader: FlowReader, store: PayloadStore) -> None:
        self._reader, self._store = reader, store
        self._chunks: deque[Payloads] = deque()
        self._stack = AsyncExitStack()
        self._reading: _Reading | None = None
        self.end: FlowEnd | None = None
        """Set when the last chunk has been read."""

    async def __aenter__(self) -> Self:
        """Begin to listen; raises BrokerUnavailable."""
        await self._stack.enter_async_context(self._reader)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def name(self) -> str:
        """The source's name."""
        return self._reader.name.stage

    @property
    def is_waiting(self) -> bool:
        """Whether the engine waits for a chunk."""
        return self._reading is not None and self._reading.waiting > 0

    def flow(self) -> Flow:
        """The flow from its first chunk on, for one run of the engine."""
        self._reading = _Reading(self, asyncio.get_running_loop())
        return self._reading

    async def run(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of some work that reads `flow`; None when the flow has begun again meanwhile, which makes it void.

        Reads the flow to its end, whatever the work leaves of it: a request does not end before its stages have. A failure
        of the flow counts for more than what became of it in the stage's code.
        """
        reading, task = self._reading, asyncio.create_task(work, name=f"flow-of {self.name}")
        assert reading is not None
        try:
            # Not awaited itself: a thread that waits for a chunk would outlast its cancellation.
            await asyncio.wait({task})
        finally:
            await reading.close()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            # Asked for in any case: asyncio reports a failure that nobody has seen, such as one beside a cancellation.
            failed = task.cancelled() or task.exception() is not None
        if reading.failure is not None:
            raise reading.failure
        while self.reads_rest and not (failed or reading.is_void or self.end is not None):
            self._chunks.clear()
            reading.is_void = await self.fetch()
        return None if reading.is_void else task.result()

    async def next(self) -> Payloads | None:
        """The next chunk, None behind the last one and when the flow has begun again; raises FlowBroken and the like."""
        while not self._chunks and self.end is None:
            if await self.fetch():
                assert self._reading is not None
                self._reading.is_void = True
                return None
        return self._chunks.popleft() if self._chunks else None

    async def fetch(self) -> bool:
        """Have more chunks, or the end; whether the flow has begun again."""
        part: FlowPart = await self._reader.read()
        self._chunks.extend(part.chunks)
        self.end = part.end
        return part.restarted

    async def values(self) -> list[Outputs] | None:
        """The next chunks that are there, None like `next`."""
        if (chunk := await self.next()) is None:
            return None
        found = [await self.value(chunk)]
        with suppress(OmnibusError):  # of a chunk that cannot be read: it is the next one's
            while self._chunks and len(found) < _TOGETHER and _is_inline(self._chunks[0]):
                found.append(await self.value(self._chunks[0]))
                self._chunks.popleft()
        return found

    async def value(self, chunk: Payloads) -> Outputs:
        rid = self._reader.name.rid
        return {name: await self._store.value(payload, rid) for name, payload in chunk.items()}


class _Reading:
    """The `Flow` of one run of an engine, and its iterator.

    Invariant: a chunk counts as read when the stage's own code takes it, on its own loop or thread. A wait for it may be given
    up at any time, as `asyncio.wait_for` does: the next one finds it. Each wait crosses between threads twice, so that it
    brings all chunks that are there.
    """

    def __init__(self, source: FlowInput, loop: asyncio.AbstractEventLoop) -> None:
        self._source, self._loop = source, loop
        self._ahead: asyncio.Task[list[Outputs] | None] | None = None
        """The read of the next chunks, until those are `_here`."""
        self._here: deque[Outputs] = deque()
        self._taking = threading.Lock()
        self._is_closed = False
        self.is_void = False
        """Whether the flow has begun again."""
        self.failure: OmnibusError | None = None
        """The failure of the flow that the stage's code was given."""
        self.waiting = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outputs:
        while (outputs := self._taken()) is None:
            if not self._bring(await self._read_from_this_loop()):
                raise StopAsyncIteration
        return outputs

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Outputs:
        _refuse_event_loops()
        while (outputs := self._taken()) is None:
            if not self._bring(asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()):
                raise StopIteration
        return outputs

    async def close(self) -> None:
        """Have every read fail that is under way or comes later. On the replica's loop."""
        self._is_closed = True
        if (read := self._ahead) is not None:
            read.cancel()
            await asyncio.wait({read})
            if not read.cancelled():
                read.exception()  # nobody may have asked for it

    def _taken(self) -> Outputs | None:
        """The next chunk, where it is here: several may ask for it."""
        self._check_open()
        with self._taking:
            return self._here.popleft() if self._here else None

    def _bring(self, read: asyncio.Task[list[Outputs] | None] | None) -> bool:
        """Have the chunks of a read here, once, however many waited for it; False at the flow's end."""
        if read is None:
            return True
        if (chunks := read.result()) is None:
            return False
        with self._taking:
            if self._ahead is read:
                self._ahead = None
                self._here.extend(chunks)
        return True

    async def _read_from_this_loop(self) -> asyncio.Task[list[Outputs] | None] | None:
        if asyncio.get_running_loop() is self._loop:
            return await self._next()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._next(), self._loop))

    async def _next(self) -> asyncio.Task[list[Outputs] | None] | None:
        """The read of the next chunks, None at the end, when it is done; on the replica's loop. None where some are here."""
        self._check_open()
        with self._taking:
            if self._here:  # another one has brought them since this one asked
                return None
            if (read := self._ahead) is None:
                read = self._ahead = asyncio.create_task(self._read(), name=f"chunk-of {self._source.name}")
        self.waiting += 1
        try:
            await asyncio.wait({read})
        finally:
            self.waiting -= 1
        self._check_open()
        if isinstance(error := read.exception(), OmnibusError) and not self.is_void:
            self.failure = error
        return read

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError(f"{self._source.name}: the flow is not wanted any more")

    async def _read(self) -> list[Outputs] | None:
        chunks = await self._source.values()
        if self.is_void:
            raise EngineError(f"stage {self._source.name!r} has begun its flow again")
        return chunks


def _is_inline(chunk: Payloads) -> bool:
    return all(payload.data is not None for payload in chunk.values())


def _refuse_event_loops() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise EngineError("a flow is read with `async for` on an event loop")
