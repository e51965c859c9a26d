"""Out of what arrives on core NATS, the contiguous stream that a client sees: pure.

Messages may be lost, doubled, and come from several attempts at a stage. An attempt speaks under its fence; the highest one
counts and the rest is dropped. Text is emitted by offset, so a later attempt continues where the earlier one was heard last,
and a gap is filled from the finished output.
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
    step: int = 0
    delivered: bool = False

    def admits(self, fence: Fence) -> bool:
        if self.delivered or fence < self.fence:
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
        if not stage.admits(message.fence) or message.offset > known:
            return  # a gap: what follows it comes with the output
        piece = message.text[known - message.offset :]
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
        if stage.delivered:
            return
        stage.delivered = True
        if output.media_type == TEXT and output.text.startswith(stage.emitted):
            rest = output.text[len(stage.emitted) :]
            stage.emitted += rest
            if rest:
                yield TextPiece(output.stage_id, rest)
        yield OutputArrived(output)

    def knows(self, stage_id: int) -> bool:
        """Whether the output of a stage was emitted."""
        return self._stage(stage_id).delivered

    def _stage(self, stage_id: int) -> _Stage:
        return self._stages.setdefault(stage_id, _Stage())
