"""What a client sees of its request: events while it runs, and the result."""

from __future__ import annotations

from dataclasses import dataclass, field

from omnibus.requests.state import RequestState
from omnibus.wire.attempt import Attempt
from omnibus.wire.envelope import StageTiming, TokenUsage
from omnibus.wire.failure import Failure

ABORT = "abort"
"""Finish reason of what was aborted: the output has what was made until then."""


@dataclass(frozen=True, slots=True)
class TextPiece:
    """The next piece of a stage's text; the pieces of a stage make its text, without gap or repetition."""

    stage_id: int
    text: str


@dataclass(frozen=True, slots=True)
class StepProgress:
    """A stage has come this far; never runs backwards."""

    stage_id: int
    step: int
    total: int
    preview: bytes | None = None
    """An encoded image."""


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

    @property
    def text(self) -> str:
        """The text of a text output."""
        return b"".join(self.items).decode()


@dataclass(frozen=True, slots=True)
class OutputArrived:
    """An output is ready, while others may still be made. Comes once an output, after all its text pieces."""

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
    """What is ready, in the order of the stages."""
    timings: tuple[StageTiming, ...]
    failure: Failure | None
    attempts: tuple[Attempt, ...] = ()
    """Those that failed, as far as anybody could tell of them; also of a request that is open, or done in the end."""

    def output(self, modality: str) -> Output | None:
        """The first output of a modality."""
        return next((output for output in self.outputs if output.modality == modality), None)

    def raise_for_state(self) -> None:
        """Raise what the request failed of; nothing when it is open or done."""
        if self.failure is not None:
            raise self.failure.exception()


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of a request."""

    result: Result


ClientEvent = TextPiece | StepProgress | OutputArrived | Ended
