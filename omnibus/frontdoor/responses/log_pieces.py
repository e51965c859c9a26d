"""The lines of a response's log. Pure.

A log begins with what was asked for; its further lines are what came of it, in the order and the pieces in which it was shown.
Every reader makes the same events of it, with the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from omnibus.errors import PayloadLost


class AskedResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="t", tag="asked"):
    """The first line."""

    v: int = 1
    head: dict[str, Any]
    """Fields of the response that do not change."""
    items: list[dict[str, Any]]
    """The input, with that of the responses before it."""
    request: bytes = b""
    """The encoded request, where it may have to be submitted again."""
    has_text: bool = True
    """Whether the answer has a text, be it an empty one."""


class WorkBegun(msgspec.Struct, frozen=True, tag_field="t", tag="begun"):
    """Somebody works on it."""


class TextGrown(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="t", tag="grown"):
    """The next piece of a text."""

    text: str
    name: str = ""
    """Empty: the answer's text; else one of `wire.fields`, or `OTHER_TEXT` and a stage's number."""


class TextReplaced(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="t", tag="replaced"):
    """The whole of a text which does not go on from what was shown of it: an attempt wrote another one."""

    text: str
    name: str = ""


class TextFinished(msgspec.Struct, frozen=True, tag_field="t", tag="finished"):
    """The text is whole, and what is beside it; what still comes are pictures."""


class PictureBegun(msgspec.Struct, frozen=True, tag_field="t", tag="painting"):
    """A stage paints."""


class PicturePreview(msgspec.Struct, frozen=True, tag_field="t", tag="preview"):
    """A picture on the way."""

    data: bytes
    image_format: str


class PictureMade(msgspec.Struct, frozen=True, tag_field="t", tag="picture"):
    """A finished picture."""

    data: bytes
    image_format: str
    size: str
    """WIDTHxHEIGHT."""


class ResponseEnd(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="t", tag="end"):
    """The last line."""

    status: str
    """completed, incomplete, failed or cancelled."""
    at: float
    """Seconds since the epoch."""
    usage: dict[str, Any] | None = None
    reason: str | None = None
    """Why it is incomplete."""
    error: dict[str, Any] | None = None


OTHER_TEXT = "stage."
"""Beginning of the names of texts of further stages."""
Piece = WorkBegun | TextGrown | TextReplaced | TextFinished | PictureBegun | PicturePreview | PictureMade | ResponseEnd
_Line = AskedResponse | Piece
_encode = msgspec.json.Encoder().encode
_decode: msgspec.json.Decoder[_Line] = msgspec.json.Decoder(_Line)


def line_of(piece: _Line) -> bytes:
    """A line, with its end."""
    return _encode(piece) + b"\n"


def lines_of(pieces: Iterable[_Line]) -> bytes:
    """Lines, one after the other."""
    return b"".join(map(line_of, pieces))


def pieces_in(lines: Iterable[bytes]) -> Iterator[_Line]:
    """The pieces in lines; a line that a death has cut off counts for nothing."""
    for line in lines:
        try:
            yield _decode.decode(line)
        except msgspec.DecodeError:
            continue


def asked_in(pieces: Iterator[_Line], response_id: str) -> AskedResponse:
    """The first piece; raises PayloadLost where it is missing."""
    first = next(pieces, None)
    if not isinstance(first, AskedResponse):
        raise PayloadLost(f"the log of response {response_id} has lost its beginning")
    return first
