"""A flow as the code of a stage reads it: on any event loop, in any thread, and from its first chunk again when it restarts."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack
from typing import Any, Self, TypeVar

from omnibus.errors import EngineError, OmnibusError
from omnibus.flows.decisions import FlowPart
from omnibus.flows.reader import FlowReader
from omnibus.payloads.store import PayloadStore
from omnibus.wire.chunk import FlowEnd
from omnibus.wire.payload import Payloads
from omnibus.workers.engines.protocol import Flow, Outputs

T = TypeVar("T")


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
            reading.close()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
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

    async def value(self, chunk: Payloads) -> Outputs:
        rid = self._reader.name.rid
        return {name: await self._store.value(payload, rid) for name, payload in chunk.items()}


class _Reading:
    """The `Flow` of one run of an engine."""

    def __init__(self, source: FlowInput, home: asyncio.AbstractEventLoop) -> None:
        self._source, self._home = source, home
        self._closed: asyncio.Future[None] = home.create_future()
        self._turn = asyncio.Lock()
        self.is_void = False
        """Whether the flow has begun again."""
        self.failure: OmnibusError | None = None
        self.waiting = 0

    async def __aiter__(self) -> AsyncIterator[Outputs]:
        while (outputs := await self._from_this_loop()) is not None:
            yield outputs

    def __iter__(self) -> Iterator[Outputs]:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise EngineError("a flow is read with `async for` on an event loop")
        while (outputs := asyncio.run_coroutine_threadsafe(self._next(), self._home).result()) is not None:
            yield outputs

    def close(self) -> None:
        """Have every read fail that is under way or comes later. On the home loop."""
        if not self._closed.done():
            self._closed.set_result(None)

    async def _from_this_loop(self) -> Outputs | None:
        if asyncio.get_running_loop() is self._home:
            return await self._next()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._next(), self._home))

    async def _next(self) -> Outputs | None:
        """The next chunk's outputs, None at the end; on the home loop."""
        async with self._turn:
            reading = asyncio.ensure_future(self._read())
            either: set[asyncio.Future[Any]] = {reading, self._closed}
            self.waiting += 1
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done() or self._closed.done():
                    raise EngineError(f"{self._source.name}: the flow is not wanted any more")
                return reading.result()
            finally:
                self.waiting -= 1
                reading.cancel()

    async def _read(self) -> Outputs | None:
        if self.failure is not None:
            raise self.failure
        if self.is_void:
            raise EngineError(f"stage {self._source.name!r} has begun its flow again")
        try:
            chunk = await self._source.next()
            if self.is_void:
                raise EngineError(f"stage {self._source.name!r} has begun its flow again")
            return None if chunk is None else await self._source.value(chunk)
        except OmnibusError as error:
            if not self.is_void:
                self.failure = error
            raise
