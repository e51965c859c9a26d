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

from omnibus.client.request_events import (
    ABORT,
    MediaPiece,
    Output,
    OutputArrived,
    SegmentFinished,
    StepProgress,
    TextPiece,
)
from omnibus.client.sound_chunk import SoundChunk
from omnibus.wire.out import Fence, Step, Tokens
from omnibus.wire.payload import TEXT

_LOWEST = Fence(0, 0, 0)


@dataclass(slots=True)
class _Stage:
    """The messages received of one stage."""

    fence: Fence = _LOWEST
    text: StringIO = field(default_factory=StringIO)
    """The emitted text, in a buffer: joining texts would copy all of it for each piece."""
    known: int = 0
    """Number of its characters."""
    token_ids: list[int] = field(default_factory=list)
    """Those of the emitted text, without a gap; it may be behind the text, never ahead."""
    diverged: bool = False
    segments: int = 0
    """Ends of segments that were emitted."""
    frames: int = 0
    """Frames of the sound that were emitted."""
    sample_rate: int = 0
    has_whole_sound: bool = False
    step: int = 0
    output: Output | None = None

    def admits(self, fence: Fence) -> bool:
        if self.output is not None or fence < self.fence:
            return False
        self.fence = fence
        return True

    def take(self, message: Tokens) -> str:
        """Emit what is new in a piece that begins within what is known."""
        before = self.known - message.offset
        repeated, piece = message.text[:before], message.text[before:]
        if repeated:
            self.text.seek(message.offset)
            self.diverged = self.text.read(len(repeated)) != repeated
        if self.diverged or not piece:
            return ""
        self.emit(piece)
        tokens = len(self.token_ids) - message.token_offset
        if tokens >= 0:
            self.token_ids.extend(message.token_ids[tokens:])
        return piece

    def ends_of(self, before: int, ends: tuple[int, ...]) -> tuple[int, ...]:
        """The new ones of the ends of segments, `before` of which came earlier; they count as emitted."""
        new = ends[max(self.segments - before, 0) :]
        self.segments += len(new)
        return new

    def emit(self, piece: str) -> None:
        self.text.seek(self.known)
        self.text.write(piece)
        self.known += len(piece)


@dataclass(slots=True)
class Assembly:
    """The stream of one request. Not safe for several tasks."""

    _stages: dict[int, _Stage] = field(default_factory=dict)

    def tokens(self, message: Tokens) -> Iterator[TextPiece | SegmentFinished]:
        """The part of a delta that is new and contiguous."""
        stage = self._stage(message.stage_id)
        if not stage.admits(message.fence) or _is_beyond(message, stage) or stage.diverged:
            return
        piece, number = stage.take(message), stage.segments
        if stage.diverged:
            return
        if not message.segments:
            if piece:
                yield TextPiece(message.stage_id, piece)
            return
        yield from _parted(
            message.stage_id, piece, stage, number, stage.ends_of(message.segment_offset, message.segments)
        )

    def lacks(self, message: Tokens) -> bool:
        """Whether text before this piece was not heard, and would be of use."""
        stage = self._stage(message.stage_id)
        wanted = stage.output is None and not stage.diverged and message.fence >= stage.fence
        return wanted and _is_beyond(message, stage)

    def known(self, stage_id: int) -> int:
        """Characters that were emitted of a stage's text."""
        return self._stage(stage_id).known

    def received(self, stage_id: int, fence: Fence) -> tuple[int, ...] | None:
        """The tokens of what was emitted, for the attempt with this fence to go on from; None for one that is outdated.

        Empty where that would serve nobody: the output is known, or earlier attempts contradict each other.

        Invariant: the answer and the fence are one step. What an earlier attempt said and nobody has emitted yet is dropped
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

    def sound(self, chunk: SoundChunk) -> Iterator[MediaPiece]:
        """The part of a chunk that is new. An attempt that begins again is not heard before it has come further.

        Of one that makes another sound what was emitted stays, as nobody can take it back.
        """
        stage = self._stage(chunk.stage_id)
        stage.sample_rate = stage.sample_rate or chunk.sample_rate
        if stage.output is not None or chunk.sample_rate != stage.sample_rate:
            return
        stage.has_whole_sound = stage.has_whole_sound or chunk.is_last
        samples = chunk.samples[..., max(0, stage.frames - chunk.offset) :]
        if samples.shape[-1]:
            stage.frames = chunk.offset + chunk.samples.shape[-1]
            yield MediaPiece(chunk.stage_id, "audio", {"audio": samples, "sample_rate": chunk.sample_rate})

    def part_of_sound(self, stage_id: int) -> tuple[int, int] | None:
        """The frames of a sound that was received in part, and their rate; None where nothing more of it is wanted."""
        stage = self._stage(stage_id)
        is_part = stage.frames > 0 and not stage.has_whole_sound and stage.output is None
        return (stage.frames, stage.sample_rate) if is_part else None

    def output(self, output: Output) -> Iterator[TextPiece | SegmentFinished | OutputArrived]:
        """A finished output, once; before it the text that was not heard."""
        stage = self._stage(output.stage_id)
        if stage.output is not None:
            return
        if output.media_type == TEXT:
            emitted = stage.text.getvalue()
            output = _whole(output, emitted)
            if output.text.startswith(emitted):
                rest, number = output.text[stage.known :], stage.segments
                stage.emit(rest)
                yield from _parted(output.stage_id, rest, stage, number, stage.ends_of(0, output.segments))
        stage.output = output
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


def _is_beyond(message: Tokens, stage: _Stage) -> bool:
    """Whether something before a piece was not received."""
    return message.offset > stage.known or message.segment_offset > stage.segments


def _parted(
    stage_id: int, piece: str, stage: _Stage, number: int, ends: Iterable[int]
) -> Iterator[TextPiece | SegmentFinished]:
    """A new piece of text, with the ends of segments in their places; the first of them is that of segment `number`."""
    start, done = stage.known - len(piece), 0
    for count, end in enumerate(ends):
        if end - start > done:
            yield TextPiece(stage_id, piece[done : end - start])
            done = end - start
        yield SegmentFinished(stage_id, number + count)
    if done < len(piece):
        yield TextPiece(stage_id, piece[done:])


def _whole(output: Output, emitted: str) -> Output:
    """Complete an aborted text by the pieces that came between the question for it and the end."""
    if output.finish_reason == ABORT and emitted.startswith(output.text):
        return replace(output, items=(emitted.encode(),))
    return output
