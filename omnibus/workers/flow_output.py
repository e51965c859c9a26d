"""The flow that a stage writes while it runs: its engine's items as chunks, behind those of an earlier attempt or anew."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Self

from omnibus.errors import BrokerError, FlowTooLarge, Overloaded, PayloadLost
from omnibus.flows.writer import FlowWriter
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.wire.chunk import FlowEnd
from omnibus.wire.envelope import StageTiming
from omnibus.wire.payload import Payloads
from omnibus.workers.engines.protocol import SEGMENT_END, Chunk, Finished, Outputs, SegmentEnd, TextDelta
from omnibus.workers.flow_prefix import FlowPrefix
from omnibus.workers.playout_delay import PlayoutDelay

log = get_logger(__name__)

Packing = Callable[[Outputs], Awaitable[Payloads]]
Unpacking = Callable[[Payloads], Awaitable[Outputs]]


class FlowOutput:
    """Writes the flow of one task. An asynchronous context; raises what `FlowWriter` does."""

    def __init__(
        self, writer: FlowWriter, kinds: Mapping[str, str], pack: Packing, unpack: Unpacking,
        *, is_needed: bool, playout: PlayoutDelay | None = None,
    ) -> None:  # fmt: skip
        """`kinds` are the outputs that stages may read: texts and tokens among them are chunks by themselves.

        Where no stage reads it, the flow is not needed: a caller has the rest from the output when the broker does not take it.
        Then `playout` may hold its first piece back.
        """
        self._writer, self._pack, self._unpack = writer, pack, unpack
        self._is_needed, self._is_given_up = is_needed, False
        self._playout, self._stack = playout, ExitStack()
        self._is_opening = False
        """Whether what is put next begins an answer to a part of the input."""
        by_kind = {kind: name for name, kind in reversed(tuple(kinds.items()))}
        self._text, self._tokens = by_kind.get("text"), by_kind.get("tokens")
        self._prefix: FlowPrefix | None = None
        """The text of earlier attempts, until this one has made it again."""
        self.end: FlowEnd | None = None
        """The end of a flow that was complete before this attempt."""
        self.nbytes = self.stored = self.hosted = 0
        """Bytes of the chunks, and how many payloads are in the object store and in shared memory."""

    async def __aenter__(self) -> Self:
        await self._writer.__aenter__()
        if self._playout is not None:
            self._stack.enter_context(self._playout)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._stack.close()
        await self._writer.__aexit__(*exc_info)

    @property
    def is_waiting(self) -> bool:
        """Whether its readers hold the engine up."""
        return self._writer.is_waiting

    @property
    def received(self) -> tuple[int, ...]:
        """The tokens of earlier attempts, which an engine may go on after."""
        return tuple(self._prefix.tokens) if self._prefix is not None else ()

    async def open(self) -> None:
        """Take over from earlier attempts: a text goes on behind what is there, anything else begins again."""
        is_text = self._text is not None or self._tokens is not None
        with self._giving_up():
            self.end = await self._writer.open(keep=is_text)
        if self._writer.has_begun:
            self.stored = self.hosted = (
                1  # chunks of the earlier ones may be there, which only the end's removal can find
            )
        if self.end is None and is_text:
            await self._read_prefix()

    async def _read_prefix(self) -> None:
        prefix = FlowPrefix()
        try:
            for chunk in await self._writer.stored():
                if not chunk.keys() <= {self._text, self._tokens}:
                    self._writer.restart()
                    return
                outputs = await self._unpack(chunk)
                prefix.add(outputs.get(self._text or "", ""), list(outputs.get(self._tokens or "", ())))
        except PayloadLost:  # nobody else can read it either
            self._writer.restart()
            return
        self._prefix = prefix

    async def add(self, item: TextDelta | Chunk | SegmentEnd) -> None:
        """Append what an item brings; waits while the broker or a reader is behind. Nothing, where the flow is complete."""
        if self._writer.is_complete or self._is_given_up:
            return
        if isinstance(item, Chunk):
            await self._leave_prefix()
            await self._put(item.outputs)
            return
        if isinstance(item, SegmentEnd):
            await self._put_segment_end()
            self._is_opening = True
            return
        self._is_opening |= item.is_opening
        text, tokens = item.text if self._text else "", list(item.token_ids) if self._tokens else []
        if self._prefix is not None:
            rest = self._prefix.rest(text, tokens)
            if rest is None:
                await self._leave_prefix()
            else:
                text, tokens = rest
        await self._put_text(text, tokens)

    def restart(self) -> None:
        """Begin again: what this stage had read is void."""
        self._prefix = None
        self._writer.restart()

    async def finish(self, finished: Finished, timings: tuple[StageTiming, ...]) -> None:
        """Append the end; returns when all is stored."""
        await self._leave_prefix()
        if self._is_given_up:
            return
        with self._giving_up():
            await self._writer.end(FlowEnd(timings=timings, finish_reason=finished.finish_reason, usage=finished.usage))

    @property
    def length(self) -> int:
        """Chunks of the flow, its end counted."""
        return self._writer.length + 1

    async def _leave_prefix(self) -> None:
        """Begin again with what this attempt has made, where that is less or something else than the earlier one."""
        prefix, self._prefix = self._prefix, None
        if prefix is not None and not prefix.is_passed:
            self._writer.restart()
            await self._put_text(*prefix.passed())

    async def _put_text(self, text: str, tokens: list[int]) -> None:
        outputs: dict[str, Any] = {}
        if self._text is not None and text:
            outputs[self._text] = text
        if self._tokens is not None and tokens:
            outputs[self._tokens] = tokens
        if outputs:
            await self._put(outputs)

    async def _put_segment_end(self) -> None:
        """Append an end with an empty text and no tokens, so that a reader that joins those need not look for it.

        A later attempt begins such a flow again: a prefix has no ends.
        """
        if not self._is_needed:  # only a caller reads it, who has the end beside the text
            return
        await self._leave_prefix()
        empty: dict[str, Any] = {}
        if self._text is not None:
            empty[self._text] = ""
        if self._tokens is not None:
            empty[self._tokens] = []
        await self._put({**empty, SEGMENT_END: True})

    async def _put(self, outputs: Outputs) -> None:
        chunk = await self._pack(outputs)
        if not chunk:
            return
        self.nbytes += sum(payload.nbytes for payload in chunk.values())
        self.stored += sum(payload.object_key is not None for payload in chunk.values())
        self.hosted += sum(payload.in_memory for payload in chunk.values())
        if self._playout is not None and (most := self._playout.of_piece(asyncio.get_running_loop().time())):
            self._writer.hold(most)
        with self._giving_up():
            await self._writer.put(chunk, is_short=self._is_opening or SEGMENT_END in outputs)
        self._is_opening = False

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Go on without a flow that no stage needs where it is too large or the broker refuses it, as an earlier layout does."""
        try:
            yield
        except (BrokerError, FlowTooLarge, Overloaded) as error:
            if self._is_needed:
                raise
            self._is_given_up = True
            log.warning(LogEvent.FLOW_SKIPPED, rid=self._writer.name.rid, flow=str(self._writer.name), error=str(error))
