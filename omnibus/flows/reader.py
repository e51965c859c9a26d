"""The reader of a flow: every chunk once, in order, to the end, whatever dies in between.

Messages that arrive by themselves are only the bell: a refused append rings it too. What counts is read from the stream, a
batch at a time, so that what a reader has in memory is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Self

from omnibus.broker.connection import Connection, Publishing, ReceivedMessage
from omnibus.errors import BrokerError, DeadlineExceeded, FlowBroken, InputTimeout
from omnibus.flows.decisions import FlowCheck, FlowPart
from omnibus.flows.flow_name import FlowName
from omnibus.flows.stored_flow import appended_behind, last_message, messages_behind
from omnibus.wire import codec
from omnibus.wire.chunk import ReadPosition

OnSilence = Callable[[], Awaitable[None]]
LOOK_EVERY = 2.0
"""Seconds after which a reader that no bell reaches reads all the same."""
_FIRST_LOOK = 0.02
"""Seconds after a bell for a message that is not readable yet; doubles up to LOOK_EVERY."""
_NEW = 1.0
"""Seconds for which a reader without a bell is new: messages of just before it listened may not be readable yet."""
SILENT_LOOKS = 5
"""Looks in vain after which somebody is asked whether the request has ended."""
REPORT_EVERY = 1 << 20
"""Bytes after which a reader tells the writer how far it is."""
_STORED = 1.0
"""Seconds for which the last report of a reader that leaves is repeated, until it is stored."""
LEASE = 10.0
"""Seconds for which a position counts that is not renewed; stages use their heartbeat timeout."""


class FlowReader:
    """Reads one flow, from its beginning. An asynchronous context; `read` is for one task at a time."""

    def __init__(
        self, conn: Connection, name: FlowName,
        *, deadline: float, reader: int | None = None, lease: float = LEASE, is_there: bool = True,
        silence: float | None = None, on_silence: OnSilence | None = None,
    ) -> None:  # fmt: skip
        """`deadline` is the request's, seconds since the epoch; `is_there`: the flow has begun.

        A `reader`, the stage that reads, holds the writer to its pace; without one it may fall behind as far as it wants to.
        Its position counts for `lease` seconds, and is renewed in time while there is something to read.
        `silence`: seconds for which a chunk of an open input is waited for.
        `on_silence` is called while nothing comes, every now and then: the request may have ended unnoticed.
        """
        self._on_silence, self._looks = on_silence, 0
        self._conn, self.name, self._deadline, self._reader = conn, name, deadline, reader
        self._check, self._is_there = FlowCheck(name), is_there
        self._seq = 0
        self._is_over = False
        self._silence, self._asked = silence, 0.0
        self._lease, self._done, self._reported = lease, 0, 0
        self._report_sent: Publishing | None = None
        self._idle: int | None = None
        """Renewals that were due since it waits for a chunk; None while there is something to read."""
        self._news = asyncio.Event()
        self._news.set()
        self._rang_behind = -1
        """The highest sequence behind which something was appended, or was to be."""
        self._new_until = asyncio.get_running_loop().time() + _NEW
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Listen for new chunks; raises BrokerUnavailable."""
        self._stack.push_async_callback(self._stored)
        bell = await self._conn.subscribe(self.name.subject, self._ring)
        self._stack.push_async_callback(bell.unsubscribe)
        self._stack.callback(self._conn.on_reconnect(self._reconnected))
        if self._reader is not None:
            self._report()
            renewing = asyncio.create_task(self._renew(), name=f"position {self.name.rid}")
            self._stack.push_async_callback(asyncio.wait, {renewing})
            self._stack.callback(renewing.cancel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def read(self) -> FlowPart:
        """The next chunks, as soon as there are any, or the end; asking for them tells that the former ones are done with.

        Raises FlowBroken when chunks are missing or the flow is gone, DeadlineExceeded when its end has not come by then,
        both naming the stage; InputTimeout when an open input is silent for too long; BrokerUnavailable.
        """
        assert not self._is_over, "nothing follows the end"
        self._asked = asyncio.get_running_loop().time()
        self._done, self._idle = self._check.offset, 0
        if self._done >= self._reported + REPORT_EVERY:
            self._report()
        pause, self._looks = _FIRST_LOOK if self._is_new else LOOK_EVERY, 0
        if not self._news.is_set():
            await self._wait(pause)
        while True:
            rang = self._news.is_set()
            self._news.clear()
            if (part := await self._available()) is not None:
                self._idle = None
                return part
            if rang:
                pause = _FIRST_LOOK if self._is_behind or self._is_new else LOOK_EVERY
            elif pause < LOOK_EVERY:
                pause = min(2 * pause, LOOK_EVERY)
            else:
                await self._look_for_it()
            await self._wait(pause)

    @property
    def _is_behind(self) -> bool:
        """Whether a bell rang for a message that was not read. Bells may come before their messages can be read, and after."""
        return self._rang_behind >= self._seq

    @property
    def _is_new(self) -> bool:
        """Whether a message may have come just before the reader listened; behind the first bell every message has one."""
        return self._rang_behind < 0 and asyncio.get_running_loop().time() < self._new_until

    def _ring(self, message: ReceivedMessage) -> None:
        self._rang_behind = max(self._rang_behind, appended_behind(message))
        if self._is_behind:
            self._news.set()

    def _reconnected(self) -> None:
        self._rang_behind, self._new_until = -1, asyncio.get_running_loop().time() + _NEW
        self._news.set()
        self._report()

    async def _available(self) -> FlowPart | None:
        """The part that can be read now, None when nothing is there that it has not got."""
        self._seq, messages = await messages_behind(self._conn, self.name, self._seq)
        if messages:  # without a bell more may be there than a batch holds
            (self._news.set if self._is_behind or self._rang_behind < 0 else self._news.clear)()
        part = self._check.take(messages)
        self._is_over = part.end is not None
        return part if part.chunks or part.restarted or part.end is not None else None

    async def _look_for_it(self) -> None:
        """Ask the stream's leader when nothing came for a while; raises FlowBroken when the flow is not there any more.

        The first message for a stage was stored before that was asked to read it.
        """
        self._rang_behind = -1  # by refused appends
        self._looks += 1
        if self._on_silence is not None and self._looks % SILENT_LOOKS == 0:
            await self._on_silence()
        seq, _ = await last_message(self._conn, self.name)
        if seq == 0 and (self._is_there or self._seq > 0):
            raise FlowBroken(f"{self.name} is gone")
        if seq > self._seq:
            self._news.set()

    async def _wait(self, seconds: float) -> None:
        left = self._deadline - self._conn.clock.now()
        if left <= 0:
            raise DeadlineExceeded(f"{self.name} has no end by the request's deadline")
        if self._silence is not None:
            left = min(left, self._asked + self._silence - asyncio.get_running_loop().time())
        if left <= 0:
            silent = f"{self.name} was silent for {self._silence:g} s"
            raise InputTimeout(f"{silent}: send segments sooner, or end it; the pipeline's input_timeout is the limit")
        with suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, left)):
                await self._news.wait()

    async def _renew(self) -> None:
        """Repeat the last report, which may have been lost; less and less often while nothing comes, which may be for hours."""
        while True:
            await asyncio.sleep(self._lease / 3)
            if self._idle is not None:
                self._idle += 1
            if self._idle is None or self._idle.bit_count() == 1:
                self._report()

    def _report(self) -> None:
        """Tell the writer how far the flow is read and done with."""
        if self._reader is None or self._is_over:
            return
        if self._report_sent is not None:
            self._report_sent.drop()
        self._reported, position = self._done, codec.encode(ReadPosition(offset=self._done))
        self._report_sent = self._conn.js_publish(self.name.position(self._reader), position, deadline=_STORED)

    async def _stored(self) -> None:
        """Wait until the last report is stored: the purge at the request's end overtakes what is not, and leaves it behind."""
        if self._report_sent is not None:
            with suppress(BrokerError):
                await self._report_sent
