"""Assembly of the messages on core NATS into the contiguous stream that a client sees: pure.

Messages may be lost, doubled, and come from several attempts at a stage. An attempt sends under its fence; the highest one
counts and the rest is dropped. Text is emitted by offset, so a later attempt with the same text continues after the part of
the earlier one that arrived. A piece beyond a gap is not emitted: the replica is asked to send the missing text again, and at
the latest the finished output has it. A later attempt with another text is not spliced on: nothing more is emitted of
that stage, and its output has the text that counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from io import StringIO
from operator import itemgetter

from omnibus.client.media_chunk import MediaChunk, piece_values
from omnibus.client.request_events import (
    ABORT,
    FieldPiece,
    MediaPiece,
    Output,
    OutputArrived,
    SegmentFinished,
    StepProgress,
    TextPiece,
)
from omnibus.wire.envelope import TokenUsage
from omnibus.wire.fields import call_of, choice_of
from omnibus.wire.out import Fence, Step, Tokens
from omnibus.wire.payload import TEXT

_LOWEST = Fence(0, 0, 0)
_TextEvent = TextPiece | FieldPiece | SegmentFinished
_Mark = tuple[int, FieldPiece | SegmentFinished]
"""An event and the characters of the text before it."""


class _Emitted:
    """A text, or a field beside it, as far as it was emitted."""

    def __init__(self) -> None:
        self._buffer = StringIO()  # joining texts would copy all of it for each piece
        self.known = 0
        """Number of its characters."""

    def emit(self, piece: str) -> str:
        self._buffer.seek(self.known)
        self._buffer.write(piece)
        self.known += len(piece)
        return piece

    def new_of(self, offset: int, piece: str) -> str | None:
        """The new part of a piece that begins within what is known; None where the rest of it contradicts that."""
        before = self.known - offset
        if before <= 0:
            return piece
        repeated, new = piece[:before], piece[before:]
        self._buffer.seek(offset)
        return new if self._buffer.read(len(repeated)) == repeated else None

    def whole(self) -> str:
        return self._buffer.getvalue()


@dataclass(slots=True)
class _Stage:
    """The messages received of one stage."""

    fence: Fence = _LOWEST
    text: _Emitted = field(default_factory=_Emitted)
    fields: dict[str, _Emitted] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)
    """Those of the emitted text and fields, without a gap; it may be behind them, never ahead."""
    prompt_tokens: int = 0
    diverged: bool = False
    segments: int = 0
    """Ends of segments that were emitted."""
    frames: int = 0
    """Frames of the sound or video that were emitted."""
    rate: float = 0
    has_all_frames: bool = False
    step: int = 0
    output: Output | None = None

    @property
    def usage(self) -> TokenUsage:
        """Tokens of what was emitted."""
        return TokenUsage(self.prompt_tokens, len(self.token_ids))

    def admits(self, fence: Fence) -> bool:
        if self.output is not None or fence < self.fence:
            return False
        self.fence = fence
        return True

    def take(self, message: Tokens) -> tuple[str, list[_Mark]]:
        """Emit what is new in a message that begins within what is known: of the text, and of fields."""
        piece = self.text.new_of(message.offset, message.text)
        fields = [(one, self._field(one.name).new_of(one.offset, one.text)) for one in message.fields]
        self.diverged = piece is None or any(new is None for _, new in fields)
        if piece is None or self.diverged or not (piece or fields):
            return "", []
        self.text.emit(piece)
        marks: list[_Mark] = [
            (one.at, FieldPiece(message.stage_id, one.name, self._field(one.name).emit(new)))
            for one, new in fields
            if new
        ]
        self.prompt_tokens = message.prompt_tokens or self.prompt_tokens
        tokens = len(self.token_ids) - message.token_offset
        if tokens >= 0:
            self.token_ids.extend(message.token_ids[tokens:])
        return piece, marks

    def new_ends(self, made: Tokens | Output) -> list[_Mark]:
        """The new ones of the ends of segments; they count as emitted."""
        before = made.segment_offset if isinstance(made, Tokens) else 0
        new, number = made.segments[max(self.segments - before, 0) :], self.segments
        self.segments += len(new)
        return [(end, SegmentFinished(made.stage_id, number + count)) for count, end in enumerate(new)]

    def rest_of_fields(self, output: Output, *, calls: bool) -> Iterator[FieldPiece]:
        """Emit the parts of fields that were not received: of calls of tools, which come behind the text, or of the others."""
        for name, whole in output.fields.items():
            if (call_of(choice_of(name)[1]) is not None) is not calls:
                continue
            emitted = self._field(name)
            if whole.startswith(emitted.whole()) and (rest := whole[emitted.known :]):
                yield FieldPiece(output.stage_id, name, emitted.emit(rest))

    def lacks_before(self, message: Tokens) -> bool:
        """Whether something before a message was not received."""
        if message.offset > self.text.known or message.segment_offset > self.segments:
            return True
        if message.fields_offset > 0 and message.fields_offset > sum(one.known for one in self.fields.values()):
            return True
        # Attempts may make further choices in another order each, so that the sum alone does not show what is missing.
        known = {name: one.known for name, one in self.fields.items()} if message.fields else {}
        for one in message.fields:
            if one.offset > known.get(one.name, 0):
                return True
            known[one.name] = max(known.get(one.name, 0), one.offset + len(one.text))
        return False

    def _field(self, name: str) -> _Emitted:
        return self.fields.setdefault(name, _Emitted())


@dataclass(slots=True)
class Assembly:
    """The stream of one request. Not safe for several tasks."""

    _stages: dict[int, _Stage] = field(default_factory=dict)

    def tokens(self, message: Tokens) -> Iterator[_TextEvent]:
        """The part of a delta that is new and contiguous."""
        stage = self._stage(message.stage_id)
        if not stage.admits(message.fence) or stage.lacks_before(message) or stage.diverged:
            return
        piece, fields = stage.take(message)
        if stage.diverged:
            return
        if not (message.segments or fields):
            if piece:
                yield TextPiece(message.stage_id, piece, stage.usage)
            return
        marks = [*fields, *stage.new_ends(message)]
        yield from _parted(message.stage_id, piece, stage.text.known, marks, stage.usage)

    def lacks(self, message: Tokens) -> bool:
        """Whether text before this piece was not received, and would be of use."""
        stage = self._stage(message.stage_id)
        wanted = stage.output is None and not stage.diverged and message.fence >= stage.fence
        return wanted and stage.lacks_before(message)

    def known(self, stage_id: int) -> int:
        """Characters that were emitted of a stage's text."""
        return self._stage(stage_id).text.known

    def received(self, stage_id: int, fence: Fence) -> tuple[int, ...] | None:
        """The tokens of what was emitted, for the attempt with this fence to go on from; None for one that is outdated.

        Empty where that would serve nobody: the output is known, or earlier attempts contradict each other.

        Invariant: the answer and the fence are one step. What an earlier attempt wrote and nobody has emitted yet is dropped
        from now on; else it would be emitted beside what the new attempt makes in its place.
        """
        stage = self._stage(stage_id)
        if fence < stage.fence:
            return None
        goes_on = stage.admits(fence) and not stage.diverged
        return tuple(stage.token_ids) if goes_on else ()

    def step(self, message: Step) -> Iterator[StepProgress]:
        """Progress, when it is some: an attempt that starts again is not shown until it has come further."""
        stage = self._stage(message.stage_id)
        if stage.admits(message.fence) and message.step > stage.step:
            stage.step = message.step
            yield StepProgress(message.stage_id, message.step, message.total, message.preview)

    def media(self, chunk: MediaChunk) -> Iterator[MediaPiece]:
        """The part of a chunk that is new. An attempt that begins again is not passed on before it has come further.

        Of one that makes another sound or video what was emitted stays, as nobody can take it back.
        """
        stage = self._stage(chunk.stage_id)
        stage.rate = stage.rate or chunk.rate
        if stage.output is not None or chunk.rate != stage.rate:
            return
        stage.has_all_frames = stage.has_all_frames or chunk.is_last
        if chunk.end > stage.frames:
            new, stage.frames = chunk.behind(stage.frames), chunk.end
            yield MediaPiece(chunk.stage_id, chunk.modality, piece_values(chunk.modality, new, chunk.rate))

    def frames_of(self, stage_id: int) -> tuple[int, float] | None:
        """The frames of a sound or video that was received in part, and their rate; None where nothing more of it is wanted."""
        stage = self._stage(stage_id)
        is_part = stage.frames > 0 and not stage.has_all_frames and stage.output is None
        return (stage.frames, stage.rate) if is_part else None

    def output(self, output: Output) -> Iterator[_TextEvent | OutputArrived]:
        """A finished output, once; before it what was not received of its text and its fields."""
        stage = self._stage(output.stage_id)
        if stage.output is not None:
            return
        if output.media_type == TEXT:
            emitted = stage.text.whole()
            output = _whole(output, stage)
            yield from stage.rest_of_fields(output, calls=False)
            if output.text.startswith(emitted):
                rest = stage.text.emit(output.text[stage.text.known :])
                yield from _parted(output.stage_id, rest, stage.text.known, stage.new_ends(output))
            yield from stage.rest_of_fields(output, calls=True)
        stage.output = output
        yield from map(OutputArrived, output.each)

    def knows(self, stage_id: int) -> bool:
        """Whether the output of a stage was emitted."""
        return self._stage(stage_id).output is not None

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Outputs so far, in the order of the stages."""
        made = (stage.output for _, stage in sorted(self._stages.items()) if stage.output is not None)
        return tuple(one for output in made for one in output.each)

    def _stage(self, stage_id: int) -> _Stage:
        return self._stages.setdefault(stage_id, _Stage())


def _parted(
    stage_id: int, piece: str, known: int, marks: Iterable[_Mark], usage: TokenUsage | None = None
) -> Iterator[_TextEvent]:
    """A new piece of text, which ends at `known` characters, with the other events in their places."""
    start, done = known - len(piece), 0
    for end, event in sorted(marks, key=itemgetter(0)):
        if end - start > done:
            yield TextPiece(stage_id, piece[done : end - start], usage)
            done = end - start
        yield event
    if done < len(piece):
        yield TextPiece(stage_id, piece[done:], usage)


def _whole(output: Output, stage: _Stage) -> Output:
    """Complete an aborted text and its fields by the pieces that came between the question for them and the end."""
    emitted = stage.text.whole()
    if output.finish_reason != ABORT or not emitted.startswith(output.text):
        return output
    known = {name: one.whole() for name, one in stage.fields.items()}
    longer = {name: text for name, text in known.items() if text.startswith(output.fields.get(name, ""))}
    return replace(output, items=(emitted.encode(),), fields={**output.fields, **longer})
