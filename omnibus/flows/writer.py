"""The writer of a flow: appends the chunks of one attempt at a stage, and never anything beside another attempt's.

One append is under way at a time, and names the last message that the writer knows. What the engine makes meanwhile waits, and
leaves joined in one message; so does what it makes within a window.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Self

from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.errors import (
    AttemptSuperseded,
    FlowBroken,
    FlowTooLarge,
    RevisionConflict,
)
from omnibus.flows.decisions import FlowCheck, Standing, standing
from omnibus.flows.flow_name import FlowName
from omnibus.flows.pacing import Pacing
from omnibus.flows.stored_flow import last_message, messages_behind, publish_behind
from omnibus.wire.chunk import Chunks, FlowEnd, size_of
from omnibus.wire.out import Fence
from omnibus.wire.payload import Payloads

WINDOW, SHORT_WINDOW = 0.025, 0.005
"""Seconds from one append to the next, and to one that begins or ends an answer: what is made meanwhile leaves together.
The first chunk, a full message and the end do not wait."""
MOST_PENDING = 4 << 20
"""Bytes that may wait for the append under way; beyond them the engine does."""
CHUNK_INLINE = 64 * 1024
"""Bytes of a chunk that ride inside its message; larger outputs are payloads elsewhere."""
_MESSAGE_INLINE, _MESSAGE_BYTES = 256 * 1024, 1 << 20
"""Bytes of a message, and with those that it refers to, beyond which it takes no further chunk."""
_MOST_CHUNKS = 1024
"""Chunks of one message, at most."""


class FlowWriter:
    """Writes one flow; an asynchronous context. Methods raise BrokerUnavailable, and what the broker or another attempt decides:

    AttemptSuperseded when a later attempt writes the flow, FlowBroken when it is gone, Overloaded when its stream is full.
    """

    def __init__(
        self, conn: Connection, name: FlowName, fence: Fence,
        *, pacing: Pacing, most: int, on_begun: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        """`most` bounds the bytes of the whole flow; `on_begun` is called whenever it is known that something is stored."""
        self._conn, self.name, self._fence = conn, name, fence
        self._pacing, self._most, self._on_begun = pacing, most, on_begun
        self._seq = 0
        """Sequence of the flow's last message, as far as this attempt knows."""
        self._next = self._offset = 0
        self._restarts = False
        self.has_begun = False
        """Whether anything of the flow is known to be stored."""
        self.is_complete = False
        """Whether the flow has its end, from this attempt or another: what is still put is dropped."""
        self._pending: deque[Payloads] = deque()
        self._pending_bytes = 0
        self._end: FlowEnd | None = None
        self._held = 0.0
        """Seconds for which the first chunk waits for the second one."""
        self._is_short = False
        """Whether something waits that begins or ends an answer."""
        self._due = asyncio.Event()
        """Set when what waits may leave sooner than it seemed."""
        self._appended = 0.0
        """When the last append began, by the clock of the loop."""
        self._free = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop: what is not stored by now never is."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait({self._work})
            if not self._work.cancelled():
                self._work.exception()  # nobody may have asked for it
        await self._pacing.close()

    async def open(self, *, keep: bool) -> FlowEnd | None:
        """Take the flow over from earlier attempts; returns its end where it is complete.

        `keep` what they wrote, and go on behind it (`stored`): they are cut off when this returns. Otherwise the flow begins
        again with the first chunk. An attempt at a task that nobody had before need not ask.
        """
        while True:
            self._seq, last = await last_message(self._conn, self.name)
            found = standing(self._fence, last)
            if last is None:
                return None
            if found is Standing.SUPERSEDED:
                raise self._superseded(last)
            await self._begun()
            self._next, self._offset, self.is_complete = last.next, last.next_offset, last.end is not None
            if self.is_complete or found is Standing.STORED:
                return last.end
            if not keep:
                self.restart()
                return None
            with suppress(RevisionConflict):  # an earlier attempt was still at it
                await self._publish(Chunks(fence=self._fence, first=self._next, offset=self._offset))
                return None

    async def stored(self) -> list[Payloads]:
        """The chunks that the flow has already, in order; raises FlowBroken where they are not whole."""
        check, seq, chunks = FlowCheck(self.name), 0, list[Payloads]()
        while seq < self._seq:
            behind, messages = await messages_behind(self._conn, self.name, seq)
            if behind == seq:
                raise FlowBroken(f"{self.name} is gone")
            seq, part = behind, check.take(messages)
            if part.restarted:
                chunks.clear()
            chunks += part.chunks
        return chunks

    @property
    def is_waiting(self) -> bool:
        """Whether its readers hold it up."""
        return self._pacing.is_waiting

    @property
    def length(self) -> int:
        """Chunks that the flow has, or will have when all is stored."""
        return self._next + len(self._pending)

    def restart(self) -> None:
        """Make void all that was written: the next chunk is the flow's first one."""
        self._pending.clear()
        self._pending_bytes = self._next = 0
        self._restarts, self._is_short = self._seq > 0 or self._is_busy, False

    def hold(self, seconds: float) -> None:
        """Have the first chunk, which is put next, wait for the second one or the end, so many seconds at most."""
        self._held, self._appended = seconds, asyncio.get_running_loop().time()

    async def put(self, chunk: Payloads, *, is_short: bool = False) -> None:
        """Append a chunk, soon, after a window that may be short; returns when no more wait than may.

        Raises FlowTooLarge beyond the flow's bound.
        """
        if self.is_complete:
            return
        size = size_of(chunk)
        if self._offset + self._pending_bytes + size > self._most:
            raise FlowTooLarge(
                f"{self.name} would have more than {self._most} bytes; make less, or raise max_flow_bytes"
            )
        self._pending.append(chunk)
        self._pending_bytes += size
        self._is_short |= is_short
        if self._window < WINDOW:
            self._due.set()
        self._begin_work()
        while self._pending_bytes > MOST_PENDING and self._is_busy:
            self._free.clear()
            await self._free.wait()
        self._check_work()

    async def end(self, end: FlowEnd) -> None:
        """Append all that waits and the flow's end; returns when they are stored."""
        if self.is_complete:
            return
        self._end = end
        self._due.set()
        self._begin_work()
        assert self._work is not None
        await asyncio.wait({self._work})
        self._check_work()

    @property
    def _is_busy(self) -> bool:
        return self._work is not None and not self._work.done()

    def _begin_work(self) -> None:
        self._check_work()
        if not self._is_busy:
            self._work = asyncio.create_task(self._append_all(), name=f"flow {self.name.rid}")

    def _check_work(self) -> None:
        """Raise what an append has failed of."""
        if self._work is not None and self._work.done():
            self._work.result()

    async def _append_all(self) -> None:
        try:
            while (self._pending or self._end is not None) and not self.is_complete:
                await self._pacing.wait(self._offset)
                await self._linger()
                await self._append(self._take())
                self._free.set()
                if not self.has_begun:
                    await self._begun()
        finally:
            self._free.set()

    async def _linger(self) -> None:
        """Wait until the window has passed since the last append began."""
        now = asyncio.get_running_loop().time
        while (left := self._appended + self._window - now()) > 0:
            self._due.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._due.wait()
        self._held, self._is_short, self._appended = 0.0, False, now()

    @property
    def _window(self) -> float:
        """Seconds from the last append, or the begin of a hold, to what waits now."""
        if self._end is not None:
            return 0.0
        if self._held:
            return self._held if len(self._pending) == 1 and self._pending_bytes <= MOST_PENDING else 0.0
        if self._pending_bytes >= _MESSAGE_INLINE:
            return 0.0
        return SHORT_WINDOW if self._is_short else WINDOW

    async def _begun(self) -> None:
        self.has_begun = True
        await self._on_begun()

    def _take(self) -> Chunks:
        """All that waits, as far as one message holds it, and the end behind the last of it."""
        chunks, inline, size = list[Payloads](), 0, 0
        while self._pending and len(chunks) < _MOST_CHUNKS and inline < _MESSAGE_INLINE and size < _MESSAGE_BYTES:
            chunk = self._pending.popleft()
            inline += sum(len(payload.data or b"") for payload in chunk.values())
            size += size_of(chunk)
            chunks.append(chunk)
        self._pending_bytes -= size
        message = Chunks(
            fence=self._fence, first=self._next, offset=self._offset, chunks=tuple(chunks), restart=self._restarts,
            end=None if self._pending else self._end,
        )  # fmt: skip
        self._next, self._offset, self._restarts = message.next, message.next_offset, False
        return message

    async def _append(self, message: Chunks) -> None:
        """Store a message behind the last one; a refusal is read back, and decided about."""
        while True:
            try:
                await self._publish(message)
            except RevisionConflict:
                self._seq, last = await last_message(self._conn, self.name)
                match standing(self._fence, last, message):
                    case Standing.LATER if message.first == 0:
                        assert last is not None
                        message = replace(message, restart=True, offset=last.next_offset)
                        self._offset = message.next_offset
                        continue
                    case Standing.COMPLETE:
                        self.is_complete = True
                        return
                    case Standing.STORED:
                        pass
                    case Standing.FIRST:
                        raise FlowBroken(f"{self.name} is gone") from None
                    case _:
                        raise self._superseded(last) from None
            self.is_complete = message.end is not None
            return

    async def _publish(self, message: Chunks) -> None:
        self._seq = await publish_behind(self._conn, self.name, message, self._seq)

    def _superseded(self, last: Chunks | None) -> AttemptSuperseded:
        is_same_task = last is None or last.fence.task_seq == self._fence.task_seq
        return AttemptSuperseded(f"{self.name} is written by a later attempt", is_same_task=is_same_task)
