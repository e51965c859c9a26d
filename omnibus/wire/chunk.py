"""The messages of a flow: the chunks that a stage makes while it runs, in order, with an end.

One message holds as many chunks as were ready together. What is on the subject of a flow is in the order of its fences: the
writer names the last message it knows, and the broker refuses all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from omnibus.wire.envelope import VERSION, StageTiming, TokenUsage
from omnibus.wire.out import Fence
from omnibus.wire.payload import Payloads

T = TypeVar("T")
SAMPLE_RATE = "sample_rate"
"""The output that says the rate of samples beside it."""
PAYLOAD_OVERHEAD = 512
"""Bytes that a payload of a chunk counts for besides its own: its objects in memory, which are more than its message has."""
FPS = "fps"
"""The output that says how many frames beside it are shown a second."""
RATES: Mapping[str, str] = {"audio": SAMPLE_RATE, "video": FPS}
"""The output beside media that says their rate, by the modality of those that callers are sent while they are made."""
CALLER_INLINE = 256 * 1024
"""Bytes of a chunk for a caller that ride inside its message: callers reach no memory of workers."""


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
    """Bytes that a chunk counts for in every bound of a flow: those that it refers to, and what holds them."""
    return sum(PAYLOAD_OVERHEAD + payload.nbytes for payload in chunk.values())


def media_first(outputs: Mapping[str, T], media: Iterable[str]) -> dict[str, T]:
    """A chunk in the order by which a caller's client knows the media in it, an output and its rate; see `media_in`."""
    order = dict.fromkeys((*(tuple(media) or RATES.values()), *outputs))
    return {one: outputs[one] for one in order if one in outputs}


def media_in(chunk: Payloads) -> tuple[str, str] | None:
    """The output of a chunk that a caller is sent, and its modality.

    Such a chunk begins with the samples or frames and their rate, and no other does.
    """
    first, second = (*chunk, "", "")[:2]
    found = next((modality for modality, rate in RATES.items() if rate == second), None)
    return None if found is None or first in RATES.values() else (first, found)
