"""Out of what arrives on core NATS, the contiguous stream that a client sees: pure.

Messages may be lost, doubled, and come from several attempts at a stage. An attempt speaks under its fence; the highest one
counts and the rest is dropped. Text is emitted by offset, so a later attempt that says the same continues where the earlier
one was heard last, and a gap is filled from the finished output. A later attempt that says something else is not spliced on:
nothing more is emitted of that stage, and its output has the text that counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from omnibus.client.events import Output, OutputArrived, StepProgress, TextPiece
from omnibus.wire.out import Fence, Step, Tokens
from omnibus.wire.payload import TEXT

_LOWEST = Fence(0, 0, 0)


@dataclass(slots=True)
class _Stage:
    """What was heard of one stage."""

    fence: Fence = _LOWEST
    emitted: str = ""
    diverged: bool = False
    step: int = 0
    output: Output | None = None

    def admits(self, fence: Fence) -> bool:
        if self.output is not None or fence < self.fence:
            return False
        self.fence = fence
        return True


@dataclass(slots=True)
class Assembly:
    """The stream of one request. Not safe for several tasks."""

    _stages: dict[int, _Stage] = field(default_factory=dict)

    def tokens(self, message: Tokens) -> Iterator[TextPiece]:
        """The part of a delta that is new and contiguous."""
        stage = self._stage(message.stage_id)
        known = len(stage.emitted)
        if not stage.admits(message.fence) or message.offset > known or stage.diverged:
            return  # a gap: what follows it comes with the output
        said, piece = message.text[: known - message.offset], message.text[known - message.offset :]
        stage.diverged = stage.emitted[message.offset : message.offset + len(said)] != said
        if stage.diverged:
            return
        if piece:
            stage.emitted += piece
            yield TextPiece(message.stage_id, piece)

    def step(self, message: Step) -> Iterator[StepProgress]:
        """Progress, when it is some."""
        stage = self._stage(message.stage_id)
        if stage.admits(message.fence) and message.step > stage.step:
            stage.step = message.step
            yield StepProgress(message.stage_id, message.step, message.total, message.preview)

    def output(self, output: Output) -> Iterator[TextPiece | OutputArrived]:
        """A finished output, once; before it the text that was not heard."""
        stage = self._stage(output.stage_id)
        if stage.output is not None:
            return
        stage.output = output
        if output.media_type == TEXT and output.text.startswith(stage.emitted):
            rest = output.text[len(stage.emitted) :]
            stage.emitted += rest
            if rest:
                yield TextPiece(output.stage_id, rest)
        yield OutputArrived(output)

    def knows(self, stage_id: int) -> bool:
        """Whether the output of a stage was emitted."""
        return self._stage(stage_id).output is not None

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Outputs so far, in the order of the stages."""
        return tuple(stage.output for _, stage in sorted(self._stages.items()) if stage.output is not None)

    def _stage(self, stage_id: int) -> _Stage:
        return self._stages.setdefault(stage_id, _Stage())
