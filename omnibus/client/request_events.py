"""The client's view of its request: events while it runs, and the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from omnibus.requests.state import RequestState
from omnibus.wire.envelope import StageTiming, TokenUsage
from omnibus.wire.failed_attempt import Attempt
from omnibus.wire.failure import Failure
from omnibus.wire.fields import Choice, choices
from omnibus.wire.request import ToolCall

ABORT = "abort"
"""Finish reason of what was aborted: the output has what was made until then."""


_LONGEST = 60


def shortened(text: str) -> str:
    """The beginning of a text on one line, quoted."""
    return repr(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The next piece of a stage's text; the pieces of a stage make its text, without gap or repetition."""

    stage_id: int
    text: str
    usage: TokenUsage | None = field(default=None, compare=False, repr=False)
    """Tokens of the stage so far, where it shows them: of the prompt, and of the (first) answer up to this piece."""


@dataclass(frozen=True, slots=True)
class FieldPiece:
    """The next piece of what a stage's answer has beside its text; those of a field make it, without gap or repetition."""

    stage_id: int
    name: str
    """As in `wire.fields`: `reasoning`, `tool_calls.0.arguments`, `logprobs`, …"""
    text: str


@dataclass(frozen=True, slots=True)
class SegmentFinished:
    """The text that answers a segment of an open input is whole: what comes next of it belongs to the next one."""

    stage_id: int
    number: int
    """The segment's; that of the request itself is 0."""


@dataclass(frozen=True, slots=True)
class StepProgress:
    """A stage has come this far; never runs backwards."""

    stage_id: int
    step: int
    total: int
    preview: bytes | None = field(default=None, repr=False)
    """An encoded image."""


@dataclass(frozen=True, slots=True)
class MediaPiece:
    """The next piece of a sound or a video while its stage makes it; those of a stage make the whole, without gap or repetition.

    Only of a request with `stream`, and of a stage that makes it in pieces. The output has the whole all the same.
    """

    stage_id: int
    modality: str
    values: Mapping[str, Any] = field(repr=False)
    """`audio`: samples, (frames,) or (channels, frames), float or integers; `sample_rate`: Hz. Or `video`: pictures,
    (frames, height, width, 3), uint8; `fps`: frames a second."""


@dataclass(frozen=True, slots=True)
class Output:
    """A delivered output."""

    stage_id: int
    modality: str
    media_type: str
    items: tuple[bytes, ...]
    """One encoded text, or n files."""
    finish_reason: str = "stop"
    usage: TokenUsage = field(default_factory=TokenUsage)
    segments: tuple[int, ...] = ()
    """Characters before the end of each segment, in a text that answers an open input."""
    fields: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Parts of the answer beside its text, by the names of `wire.fields`; `choices` has them typed."""
    also: tuple[Output, ...] = field(default=(), repr=False)
    """Further outputs of its stage, of other modalities; empty in results and events, where each stands by itself."""

    @property
    def each(self) -> tuple[Output, ...]:
        """It, and the further outputs of its stage."""
        return (replace(self, also=()), *self.also) if self.also else (self,)

    @property
    def text(self) -> str:
        """The text of a text output."""
        return b"".join(self.items).decode()

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The answers of a text output, typed: text, reasoning, calls of tools, probabilities of tokens; n of a request for n."""
        return choices(self.text, self.finish_reason, self.fields)

    @property
    def reasoning(self) -> str | None:
        """The reasoning before the (first) answer."""
        return self.choices[0].reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls of tools in the (first) answer."""
        return self.choices[0].tool_calls

    @property
    def logprobs(self) -> tuple[Mapping[str, Any], ...] | None:
        """Probabilities of each token of the (first) answer, where they were asked for."""
        return self.choices[0].logprobs

    def __repr__(self) -> str:
        return f"<{self.modality} of stage {self.stage_id}: {self.summary()}>"

    def summary(self) -> str:
        """One line: the beginning of a text, or how many files there are and their size."""
        if self.modality == "text":
            return shortened(b"".join(self.items).decode(errors="replace"))
        files = f"{len(self.items)} file{'' if len(self.items) == 1 else 's'}"
        return f"{files} of {self.media_type}, {sum(map(len, self.items)):,} bytes"


@dataclass(frozen=True, slots=True)
class OutputArrived:
    """An output is ready, while others may still be made. Comes once an output, after all its pieces."""

    output: Output


@dataclass(frozen=True, slots=True)
class Result:
    """A request as the ledger knows it; final when its state is terminal."""

    rid: str
    pipeline: str
    state: RequestState
    created: float
    """Seconds since the epoch."""
    deadline: float
    run: int
    outputs: tuple[Output, ...]
    """Outputs that are ready, in the order of the stages."""
    timings: tuple[StageTiming, ...]
    failure: Failure | None
    attempts: tuple[Attempt, ...] = ()
    """Those that failed, as far as they were reported; also of a request that is open, or done in the end."""
    stage_ids: tuple[int, ...] = ()
    """Stages that it runs, each after those that it needs."""

    def __repr__(self) -> str:
        failure = (
            f", failure={self.failure.code}: {shortened(self.failure.message)}" if self.failure is not None else ""
        )
        return f"<Result {self.rid} of {self.pipeline}: {self.state}, outputs={list(self.outputs)}{failure}>"

    def output(self, modality: str) -> Output | None:
        """The first output of a modality."""
        return next((output for output in self.outputs if output.modality == modality), None)

    def raise_for_state(self) -> None:
        """Raise what the request failed of; nothing when it is open or done."""
        if self.failure is not None:
            error = self.failure.exception()
            error.ended_request = True
            raise error


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of a request."""

    result: Result


ClientEvent = TextPiece | FieldPiece | SegmentFinished | StepProgress | MediaPiece | OutputArrived | Ended
