"""How far a caller has the events of one request, as a short text by which it goes on from there: pure.

A follower of a request has every event from its beginning. A cursor passes on the parts that its caller lacks. It has lengths
and checksums, no text: nothing has to be stored, and any process goes on from it.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from omnibus.client.request_events import (
    ClientEvent,
    Ended,
    FieldPiece,
    OutputArrived,
    SegmentFinished,
    StepProgress,
    TextPiece,
)
from omnibus.errors import InvalidRequest

MAX_LENGTH = 16_384
"""Characters of a cursor; one of a request with a text has about 30."""
PIECE_CHARS = 4096
"""Characters of a text in one event, of 12 bytes each at worst: clients that read lines have a bound on them."""
_Count = Annotated[int, msgspec.Meta(ge=0)]
_TEXT = ""
"""The name of the text itself among the fields beside it."""


class _SeenText(msgspec.Struct, array_like=True):
    """A text as far as the caller has it."""

    length: _Count = 0
    checksum: _Count = 0


class _SeenStage(msgspec.Struct, array_like=True):
    """The events of a stage that the caller has."""

    step: _Count = 0
    segments: _Count = 0
    outputs: _Count = 0
    texts: dict[str, _SeenText] = msgspec.field(default_factory=dict)


class _Seen(msgspec.Struct, array_like=True):
    """A cursor as it is written."""

    request: int
    """Checksum of the request's id."""
    ended: _Count = 0
    """The run whose end the caller has; 0: none."""
    stages: dict[int, _SeenStage] = msgspec.field(default_factory=dict)


@dataclass(slots=True)
class _Read:
    """A stage's events that have come from the follower, whether the caller had them or not."""

    outputs: int = 0
    texts: dict[str, _SeenText] = field(default_factory=dict)
    contradicted: set[str] = field(default_factory=set)


class StreamCursor:
    """How far one caller has the events of one request. Not safe for several tasks."""

    def __init__(self, rid: str, given: str | None = None, *, param: str = "starting_after") -> None:
        """Go on from a cursor that the caller was given, else from the beginning; raises InvalidRequest, naming `param`."""
        self._seen = _Seen(_checksum(rid)) if given is None else _decoded(given, param)
        self._read: dict[int, _Read] = {}
        self.has_begun = given is not None
        """Whether the caller has had an event."""
        if self._seen.request != _checksum(rid):
            raise InvalidRequest("the cursor is of another request", param=param)

    def __str__(self) -> str:
        """The cursor behind the last event that was taken from `behind`."""
        return base64.urlsafe_b64encode(msgspec.msgpack.encode(self._seen)).rstrip(b"=").decode()

    def has_end(self, run: int) -> bool:
        """Whether the caller has the end of this run."""
        return self._seen.ended >= run

    def behind(self, event: ClientEvent) -> Iterator[ClientEvent]:
        """The part of an event that the caller lacks, a text in pieces of PIECE_CHARS; the cursor moves with each.

        A text that begins otherwise than the one that the caller has is not passed on: its output has the text that counts.
        The pieces of sound and video that a follower may have are left out.
        """
        match event:
            case TextPiece(stage_id, text):
                yield from (TextPiece(stage_id, piece) for piece in self._new_text(stage_id, _TEXT, text))
            case FieldPiece(stage_id, name, text):
                yield from (FieldPiece(stage_id, name, piece) for piece in self._new_text(stage_id, name, text))
            case SegmentFinished(stage_id, number) if number >= (seen := self._stage(stage_id)).segments:
                seen.segments = number + 1
                yield event
            case StepProgress(stage_id, step) if step > (seen := self._stage(stage_id)).step:
                seen.step = step
                yield event
            case OutputArrived(output=output):
                read, seen = self._reading(output.stage_id), self._stage(output.stage_id)
                read.outputs += 1
                if read.outputs > seen.outputs:
                    seen.outputs = read.outputs
                    yield event
            case Ended(result=result) if not self.has_end(result.run):
                self._seen.ended = result.run
                yield event

    def _new_text(self, stage_id: int, name: str, text: str) -> Iterator[str]:
        read, seen = self._reading(stage_id), self._stage(stage_id).texts.setdefault(name, _SeenText())
        so_far = read.texts.setdefault(name, _SeenText())
        if name in read.contradicted:
            return
        repeated, text = text[: seen.length - so_far.length], text[max(seen.length - so_far.length, 0) :]
        if so_far.length < seen.length:
            so_far.length, so_far.checksum = so_far.length + len(repeated), _checksum(repeated, so_far.checksum)
            if so_far.length == seen.length and so_far.checksum != seen.checksum:
                read.contradicted.add(name)
                return
        for start in range(0, len(text), PIECE_CHARS):
            piece = text[start : start + PIECE_CHARS]
            seen.length, seen.checksum = seen.length + len(piece), _checksum(piece, seen.checksum)
            so_far.length, so_far.checksum = seen.length, seen.checksum
            yield piece

    def _stage(self, stage_id: int) -> _SeenStage:
        return self._seen.stages.setdefault(stage_id, _SeenStage())

    def _reading(self, stage_id: int) -> _Read:
        return self._read.setdefault(stage_id, _Read())


def _checksum(text: str, before: int = 0) -> int:
    return zlib.crc32(text.encode(errors="surrogatepass"), before)


def _decoded(text: str, param: str) -> _Seen:
    refusal = InvalidRequest("it is no cursor of an event", param=param)
    if len(text) > MAX_LENGTH:
        raise refusal
    try:
        raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgspec.msgpack.decode(raw, type=_Seen)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise refusal from error
