"""The messages of a flow: the chunks that a stage makes while it runs, in order, with an end.

One message holds as many chunks as were ready together. What is on the subject of a flow is in the order of its fences: the
writer names the last message it knows, and the broker refuses all others.
"""

from __future__ import annotations

import msgspec

from omnibus.wire.envelope import VERSION, StageTiming, TokenUsage
from omnibus.wire.out import Fence
from omnibus.wire.payload import Payloads


class FlowEnd(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The end of a flow, behind its last chunk: its stage has finished."""

    timings: tuple[StageTiming, ...] = ()
    """Those of this stage and the stages before it."""
    finish_reason: str = "stop"
    usage: TokenUsage = TokenUsage()


class Chunks(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="chunks"):
    """Chunks of a flow that follow each other; none where an attempt only shows that the flow is its own now."""

    v: int = msgspec.field(default_factory=lambda: VERSION)
    fence: Fence
    first: int
    """Number of the first chunk; the flow's first is 0."""
    offset: int = 0
    """Bytes of all chunks of this flow before these, also of those that a restart has made void."""
    chunks: tuple[Payloads, ...] = ()
    restart: bool = False
    """The chunks before this message count no more; `first` is 0."""
    end: FlowEnd | None = None

    @property
    def next(self) -> int:
        """Number of the chunk that follows."""
        return self.first + len(self.chunks)

    @property
    def next_offset(self) -> int:
        return self.offset + sum(map(size_of, self.chunks))


class ReadPosition(msgspec.Struct, frozen=True, kw_only=True, tag="position"):
    """How far a stage has read a flow; its last one is stored."""

    offset: int
    """Bytes, as the chunks count them."""


def size_of(chunk: Payloads) -> int:
    """Bytes of a chunk, also those that it refers to."""
    return sum(payload.nbytes for payload in chunk.values())
