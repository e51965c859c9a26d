"""Decisions about a flow: who may append what, and whether what is read is whole. Pure, without clock, I/O or NATS."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from omnibus.errors import FlowBroken
from omnibus.flows.flow_name import FlowName
from omnibus.wire.chunk import Chunks, FlowEnd
from omnibus.wire.out import Fence
from omnibus.wire.payload import Payloads


class Standing(Enum):
    """The standing of an attempt towards a flow, by the flow's last message."""

    FIRST = auto()
    """Nothing is there: it begins the flow."""
    STORED = auto()
    """The message is its own; its acknowledgement may have been lost."""
    LATER = auto()
    """An earlier attempt's: this one takes over."""
    COMPLETE = auto()
    """The flow has its end, from any attempt: there is nothing to append."""
    SUPERSEDED = auto()
    """A later attempt's: this one appends nothing more."""


def standing(fence: Fence, last: Chunks | None, mine: Chunks | None = None) -> Standing:
    """Where an attempt stands; `mine` is the message that it tried to append, when that was refused."""
    if last is None:
        return Standing.FIRST
    if last == mine or (mine is None and last.fence == fence):
        return Standing.STORED
    if last.end is not None:
        return Standing.COMPLETE
    return Standing.LATER if last.fence < fence else Standing.SUPERSEDED


class Turn(Enum):
    """The place of a segment of an open input, by the input's last message."""

    NEXT = auto()
    """It is the next one."""
    KNOWN = auto()
    """One with its number is stored: the same one, or another."""
    EARLY = auto()
    """One before it is missing."""
    CLOSED = auto()
    """The input has ended before it."""


def turn_of(number: int, last: Chunks | None) -> Turn:
    """The turn of a segment; the first one that follows the request has number 1."""
    following = following_segment(last)
    if number < following:
        return Turn.KNOWN
    if last is not None and last.end is not None:
        return Turn.CLOSED
    return Turn.NEXT if number == following else Turn.EARLY


def following_segment(last: Chunks | None) -> int:
    """The number of the segment behind an input's last message; an end without a chunk had one, too."""
    return 1 if last is None else last.next + 1 + (last.end is not None and not last.chunks)


@dataclass(frozen=True, slots=True)
class FlowPart:
    """The chunks that one reading of a flow brought, which follow each other."""

    first: int
    """Number of the first one."""
    chunks: tuple[Payloads, ...]
    restarted: bool = False
    """The flow has begun again: all that was read before is void."""
    end: FlowEnd | None = None
    """Set on the last part."""


class FlowCheck:
    """Sees that a flow is read whole: each chunk once, in order, of attempts that may write it."""

    def __init__(self, name: FlowName) -> None:
        self._name = name
        self.next = 0
        """Number of the next chunk."""
        self.offset = 0
        """Bytes up to there, as the chunks count them."""
        self._fence = Fence(0, 0, 0)

    def take(self, messages: list[Chunks]) -> FlowPart:
        """The chunks of messages in the order of the stream; raises FlowBroken, which names the stage."""
        had, restarted, end = self.next > 0, False, None
        first, chunks = self.next, list[Payloads]()
        for message in messages:
            if message.fence < self._fence or end is not None:
                continue  # of an attempt that was cut off, or behind the end
            if message.restart:
                restarted, first, self.next = restarted or had, 0, 0
                chunks.clear()
            self._check(message)
            chunks += message.chunks
            self._fence, self.next, self.offset, end = message.fence, message.next, message.next_offset, message.end
        return FlowPart(first, tuple(chunks), restarted, end)

    def _check(self, message: Chunks) -> None:
        if message.first > self.next:
            missing = f"chunks {self.next} to {message.first - 1} are missing"
            raise FlowBroken(f"{self._name} has a gap: {missing}")
        if message.first < self.next:
            raise FlowBroken(f"{self._name} repeats chunk {message.first}; {self.next} was next")
