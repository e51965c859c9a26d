"""Outputs of the façades for a request, made of the request's events: pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from omnibus.client.request_events import (
    ABORT,
    ClientEvent,
    Ended,
    FieldPiece,
    MediaPiece,
    Output,
    OutputArrived,
    Result,
    SegmentFinished,
    StepProgress,
    TextPiece,
    shortened,
)
from omnibus.errors import RequestCancelled
from omnibus.requests.state import RequestState
from omnibus.wire.envelope import StageTiming
from omnibus.wire.failure import Failure
from omnibus.wire.payload import TEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class OmniRequestOutput:
    """One output of a request, or the next piece of one."""

    request_id: str
    prompt: str | None
    """The prompt's text, where it is known."""
    stage_id: int | None = None
    """None when the request ended without this output belonging to a stage."""
    delta: str = ""
    """The next piece of a text; then `output` is None."""
    fields: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The next piece of a field beside the text, such as `reasoning`; then `output` is None. Whole ones: `output.choices`."""
    piece: MediaPiece | None = None
    """The next piece of a sound; then `output` is None."""
    segment_finished: bool = False
    """The text that answers a segment of an open input is whole; `delta` is empty then."""
    output: Output | None = None
    """The whole output: its bytes, finish reason and tokens."""
    finished: bool = False
    """Nothing follows for this request."""
    failure: Failure | None = None
    """Why it ended, unless it is done."""
    timings: tuple[StageTiming, ...] = ()
    """Times of every stage, with the last output; the first time in a queue starts at the request's arrival."""

    def __repr__(self) -> str:
        shown = self.output or self.piece or f"delta={shortened(self.delta)}"
        failed = f", failure={self.failure.code}" if self.failure is not None else ""
        return f"<OmniRequestOutput {self.request_id}: {shown}, finished={self.finished}{failed}>"

    @property
    def text(self) -> str:
        """The text, or its next piece."""
        return self.output.text if self.output is not None else self.delta

    @property
    def final_output_type(self) -> str | None:
        """Modality; None when no output belongs to it."""
        made = self.output or self.piece
        return made.modality if made is not None else "text" if self.delta else None

    @property
    def aborted(self) -> bool:
        """The request was aborted; a text then holds the part that had been received."""
        return self.failure is not None and self.failure.code == RequestCancelled.code

    @property
    def finish_reason(self) -> str | None:
        """Why the output is complete, None while it is not."""
        if self.output is not None:
            return self.output.finish_reason
        return ABORT if self.aborted else None

    @property
    def nbytes(self) -> int:
        """Bytes of what it holds."""
        samples = self.piece.values.values() if self.piece is not None else ()
        items = self.output.items if self.output is not None else ()
        return len(self.delta) + sum(getattr(one, "nbytes", 0) for one in samples) + sum(map(len, items))

    def raise_for_failure(self) -> None:
        """Raise what the request failed of; nothing for one that was aborted, or goes well."""
        if self.failure is not None and not self.aborted:
            raise self.failure.exception()


@dataclass(slots=True)
class OutputAdapter:
    """Turns the events of one request into its outputs; the last one is held back until the request has ended."""

    request_id: str
    prompt: str | None
    deltas: bool = False
    """Whether pieces are outputs too."""
    _pieces: dict[int, list[str]] = field(default_factory=dict)
    _held: OmniRequestOutput | None = None
    _delivered: set[int] = field(default_factory=set)

    @property
    def texts(self) -> dict[int, str]:
        """The received text of each stage."""
        return {stage_id: "".join(pieces) for stage_id, pieces in self._pieces.items()}

    def notify(self, event: ClientEvent) -> Iterator[OmniRequestOutput]:
        """The outputs that follow from an event."""
        match event:
            case TextPiece(stage_id, text):
                self._pieces.setdefault(stage_id, []).append(text)
                if self.deltas:
                    yield self._of(stage_id, delta=text)
            case FieldPiece() | SegmentFinished() | MediaPiece():
                if self.deltas:
                    yield self._piece(event)
            case OutputArrived(output):
                self._delivered.add(output.stage_id)
                yield from self._release()
                self._held = self._of(output.stage_id, output=output)
            case Ended(result):
                yield from self._end(result)
            case StepProgress():
                return

    def _piece(self, event: FieldPiece | SegmentFinished | MediaPiece) -> OmniRequestOutput:
        match event:
            case FieldPiece(stage_id, name, text):
                return self._of(stage_id, fields={name: text})
            case SegmentFinished(stage_id):
                return self._of(stage_id, segment_finished=True)
            case MediaPiece(stage_id):
                return self._of(stage_id, piece=event)

    def lost(self, failure: Failure) -> OmniRequestOutput:
        """The last output of a request whose end cannot be read."""
        return OmniRequestOutput(request_id=self.request_id, prompt=self.prompt, finished=True, failure=failure)

    def _end(self, result: Result) -> Iterator[OmniRequestOutput]:
        if result.state is RequestState.CANCELLED:
            for stage_id, text in sorted(self.texts.items()):
                if stage_id not in self._delivered:
                    yield from self._release()
                    self._held = self._of(stage_id, output=_partial(stage_id, text))
        elif result.failure is not None:
            yield from self._release()
        self._held = self._held or self._of(None)
        last, self._held = self._held, None
        yield replace(last, finished=True, failure=result.failure, timings=result.timings)

    def _release(self) -> Iterator[OmniRequestOutput]:
        if self._held is not None:
            yield self._held
            self._held = None

    def _of(self, stage_id: int | None, **made: Any) -> OmniRequestOutput:
        return OmniRequestOutput(request_id=self.request_id, prompt=self.prompt, stage_id=stage_id, **made)


def _partial(stage_id: int, text: str) -> Output:
    return Output(stage_id, "text", TEXT, (text.encode(),), finish_reason=ABORT)
