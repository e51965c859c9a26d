"""A flow as the code of a stage reads it: on any event loop, in any thread, and from its first chunk again when it restarts."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, Self, TypeVar

from omnibus.errors import EngineError, OmnibusError
from omnibus.flows.decisions import FlowPart
from omnibus.flows.reader import FlowReader
from omnibus.payloads.packing import HEAVY
from omnibus.payloads.store import PayloadStore
from omnibus.wire.chunk import FlowEnd, size_of
from omnibus.wire.payload import Payloads
from omnibus.workers.engines.protocol import Flow, Outputs

T = TypeVar("T")
_TOGETHER = 64
"""Chunks that the code of a stage gets from the replica's loop together, up to HEAVY bytes. One whose bytes lie elsewhere is
the first of them."""


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
        found, size = [await self.value(chunk)], size_of(chunk)
        with suppress(OmnibusError):  # of a chunk that cannot be read: it is the next one's
            while self._chunks and len(found) < _TOGETHER and size < HEAVY and _is_inline(self._chunks[0]):
                found.append(await self.value(self._chunks[0]))
                size += size_of(self._chunks.popleft())
        return found

    async def value(self, chunk: Payloads) -> Outputs:
        rid = self._reader.name.rid
        return {name: await self._store.value(payload, rid) for name, payload in chunk.items()}


class _Reading:
    """The `Flow` of one run of an engine, and its iterator.

    Invariant: a chunk counts as read when the stage's own code takes it, on its own loop or thread. A wait for it may be given
    up at any time, as `asyncio.wait_for` does: the next one finds it. Each wait wakes two threads, which is why it brings
    the chunks that are there together.
    """

    def __init__(self, source: FlowInput, loop: asyncio.AbstractEventLoop) -> None:
        self._source, self._loop = source, loop
        self._ahead: asyncio.Task[list[Outputs] | None] | None = None
        """The read of the next chunks, until those are `_here`."""
        self._here: deque[Outputs] = deque()
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
            if not await self._brought():
                raise StopAsyncIteration
        return outputs

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Outputs:
        _refuse_event_loops()
        while (outputs := self._taken()) is None:
            if not asyncio.run_coroutine_threadsafe(self._bring(), self._loop).result():
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
        try:
            return self._here.popleft()
        except IndexError:
            return None

    async def _brought(self) -> bool:
        if asyncio.get_running_loop() is self._loop:
            return await self._bring()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._bring(), self._loop))

    async def _bring(self) -> bool:
        """Have the next chunks here; False at the end. On the replica's loop."""
        self._check_open()
        if self._here:  # another one has brought them since this one asked
            return True
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
        if (chunks := read.result()) is None:
            return False
        if self._ahead is read:  # the first of those who waited for it
            self._ahead = None
            self._here.extend(chunks)
        return True

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
