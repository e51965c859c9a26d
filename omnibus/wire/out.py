"""The messages to the producer of a request, on core NATS: deltas while it runs, outputs when ready, a notice at the end.

Messages may be lost here: offsets show a gap, and the ledger has the truth.
"""

from __future__ import annotations

import msgspec

from omnibus.wire.envelope import FinalOutput, StageTiming
from omnibus.wire.failure import Failure


class Fence(msgspec.Struct, frozen=True, array_like=True, order=True):
    """The attempt that a message comes from. A receiver keeps the highest fence of a stage and drops lower ones."""

    run: int
    task_seq: int
    """Stream sequence of the task."""
    delivery: int
    """Delivery count of the task."""


class FieldDelta(msgspec.Struct, frozen=True, array_like=True):
    """The next piece of a field of the answer beside its text: each field is a text of its own, see `wire.fields`."""

    name: str
    offset: int
    """Characters of this attempt's field before this piece."""
    at: int
    """Characters of this attempt's text before it."""
    text: str


class Tokens(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="tokens"):
    """Text that an LLM stage has just made."""

    rid: str
    stage_id: int
    fence: Fence
    offset: int
    """Characters of this attempt's text before this piece."""
    text: str
    token_offset: int = 0
    """Tokens of this attempt before this piece."""
    token_ids: tuple[int, ...] = ()
    """All tokens since the last piece, up to the one that completed the text."""
    segment_offset: int = 0
    """Segments that had ended before this piece."""
    segments: tuple[int, ...] = ()
    """Characters of this attempt's text before the end of each segment that ends in this piece."""
    fields_offset: int = 0
    """Characters of all fields before this piece."""
    fields: tuple[FieldDelta, ...] = ()
    """Pieces of fields, in the order in which they were made."""
    prompt_tokens: int = 0
    """Tokens of the prompt, in the first message that knows them; 0: the same as before."""

    @property
    def size(self) -> int:
        """Characters of the text and of fields."""
        return len(self.text) + self.fields_size

    @property
    def fields_size(self) -> int:
        return sum(len(piece.text) for piece in self.fields) if self.fields else 0


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="step"):
    """A stage has come this far."""

    rid: str
    stage_id: int
    fence: Fence
    step: int
    total: int
    preview: bytes | None = None
    """An encoded image."""


class OutputReady(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="output"):
    """A final output is in the ledger, and another one is still to come."""

    rid: str
    output: FinalOutput


class EndNotice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="ended"):
    """The request is in a terminal state. A receiver that misses an output reads the record."""

    rid: str
    state: str
    run: int = 1
    outputs: tuple[FinalOutput, ...] = ()
    """All of them, of a request that is done."""
    timings: tuple[StageTiming, ...] = ()


class Refused(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="refused"):
    """A raw request was not accepted: its id belongs to another request."""

    rid: str
    failure: Failure


class AskReceived(msgspec.Struct, frozen=True, kw_only=True, tag="ask-received"):
    """A later attempt at a stage asks which tokens of the earlier ones were delivered, to go on from there.

    A follower that answers, with a Received on the reply subject, delivers nothing more of attempts below the fence.
    """

    rid: str
    stage_id: int
    fence: Fence


class Received(msgspec.Struct, frozen=True, kw_only=True, tag="received"):
    """The tokens of a stage's text that a follower has delivered."""

    token_ids: tuple[int, ...] = ()
    """From the first token on, without a gap."""


Out = Tokens | Step | OutputReady | EndNotice | Refused | AskReceived
