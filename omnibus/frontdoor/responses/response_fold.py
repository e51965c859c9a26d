"""The fold of a response's log: the events of each piece, numbered, and the response as it is after them. Pure.

Invariant: the numbers of events are a function of the pieces alone, so that every reader of a log has the same ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from io import StringIO
from types import MappingProxyType
from typing import Any

from omnibus.frontdoor.responses.log_pieces import (
    AskedResponse,
    PictureBegun,
    PictureMade,
    PicturePreview,
    Piece,
    ResponseEnd,
    TextFinished,
    TextGrown,
    TextReplaced,
    WorkBegun,
)
from omnibus.frontdoor.responses.response_items import (
    FunctionCallItem,
    ItemEvent,
    MessageItem,
    PictureItem,
    ReasoningItem,
    ResponseItem,
)
from omnibus.wire.fields import LOGPROBS, REASONING, call_of, logprobs_in

_LAST_EVENT = {"completed": "completed", "failed": "failed", "incomplete": "incomplete", "cancelled": "incomplete"}
"""The last event by the status; clients know none for a cancellation."""


class ResponseFold:
    """Made of what was asked for. Pieces are taken in the order of the log."""

    def __init__(self, asked: AskedResponse) -> None:
        self._head, self._has_text = asked.head, asked.has_text
        self.status = "queued" if asked.head["background"] else "in_progress"
        self.end: ResponseEnd | None = None
        self.items: list[ResponseItem] = []
        self.shown: dict[str, StringIO] = defaultdict(StringIO)
        """Texts as far as they were shown, by name."""
        self.pictures = self.previews = 0
        """Finished pictures, and previews of the next one."""
        self._writing: tuple[str, ResponseItem] | None = None
        """The item that grows by text, and its kind."""
        self._written: dict[str, ResponseItem] = {}
        """The last item of each kind."""
        self._painting: PictureItem | None = None
        self._calls: dict[int, dict[str, str]] = defaultdict(dict)
        self._logprobs: list[Mapping[str, Any]] = []
        self._number = 0

    @property
    def is_painting(self) -> bool:
        return self._painting is not None

    def opening(self) -> Iterator[ItemEvent]:
        """The events before any piece."""
        yield self._about_all("created")
        yield self._about_all("queued" if self._head["background"] else "in_progress")

    def take(self, piece: Piece) -> Iterator[ItemEvent]:
        """The events of a piece; to be read to their end."""
        for event in self._events(piece):
            if "sequence_number" not in event:
                event["sequence_number"] = self._next_number()
            yield event

    def replay(self, pieces: Iterable[Piece]) -> None:
        """Take pieces whose events nobody wants."""
        for piece in pieces:
            for _ in self.take(piece):
                pass

    def response(self) -> dict[str, Any]:
        """The response as it is now."""
        end, status = self.end, self.status
        error, usage = (end.error, end.usage) if end is not None else (None, None)
        reason = end.reason if end is not None else None
        return {
            **self._head, "status": status, "output": [item.shape() for item in self.items], "error": error,
            "usage": usage, "incomplete_details": None if reason is None else {"reason": reason},
            "completed_at": int(end.at) if end is not None and status == "completed" else None,
        }  # fmt: skip

    def _events(self, piece: Piece) -> Iterable[ItemEvent]:
        match piece:
            case WorkBegun():
                self.status = "in_progress"
                return [self._about_all("in_progress")]
            case TextGrown(text, name):
                return self._grown(name, text)
            case TextReplaced(text, name):
                self._replace(name, text)
                return ()
            case TextFinished():
                return self._stop_writing("completed")
            case PictureBegun():
                return self._open_picture()
            case PicturePreview(data, image_format):
                return self._previewed(data, image_format)
            case PictureMade():
                return self._made(piece)
            case ResponseEnd():
                return self._ended(piece)

    def _grown(self, name: str, text: str) -> Iterator[ItemEvent]:
        self.shown[name].write(text)
        if name == LOGPROBS:
            self._logprobs += logprobs_in(text)
        elif (call := call_of(name)) is not None:
            yield from self._call_grown(*call, text)
        else:
            yield from self._turn_to(name)
            assert self._writing is not None
            logprobs = self._logprobs if name != REASONING else []
            yield from self._writing[1].grow(text, tuple(logprobs))
            logprobs.clear()

    def _call_grown(self, number: int, part: str, text: str) -> Iterator[ItemEvent]:
        """A piece of a call: its item begins with its name, which comes behind the id."""
        if part != "arguments":
            self._calls[number][part] = text
        if part != "id":
            yield from self._turn_to(f"call {number}", self._calls[number])
        if part == "arguments":
            assert self._writing is not None
            yield from self._writing[1].grow(text)

    def _turn_to(self, kind: str, call: Mapping[str, str] = MappingProxyType({})) -> Iterator[ItemEvent]:
        """End the item that grew, unless it is of this kind, and begin the next one."""
        if self._writing is not None and self._writing[0] == kind:
            return
        yield from self._stop_writing("completed")
        item: ResponseItem
        if kind.startswith("call "):
            item = FunctionCallItem(
                self._new_id("fc"), len(self.items), call_id=call.get("id", ""), name=call.get("name", "")
            )
        elif kind == REASONING:
            item = ReasoningItem(self._new_id("rs"), len(self.items))
        else:
            item = MessageItem(self._new_id("msg"), len(self.items))
        self._writing = (kind, item)
        self._written[kind] = item
        self.items.append(item)
        yield from item.begin()

    def _stop_writing(self, status: str) -> Iterator[ItemEvent]:
        if self._writing is not None:
            _, item = self._writing
            self._writing = None
            yield from item.end(status)

    def _replace(self, name: str, text: str) -> None:
        """Put the whole of a text in the place of what was shown of it: the events of its end have it, and the response."""
        call, self.shown[name] = call_of(name), StringIO()
        self.shown[name].write(text)
        item = self._written.get(name if call is None else f"call {call[0]}")
        if item is not None and (call is None or call[1] == "arguments"):
            item.pieces = [text]

    def _open_picture(self) -> Iterator[ItemEvent]:
        if self._painting is None:
            self._painting = PictureItem(self._new_id("ig"), len(self.items))
            self.items.append(self._painting)
            yield from self._painting.begin()

    def _previewed(self, data: bytes, image_format: str) -> Iterator[ItemEvent]:
        yield from self._open_picture()
        assert self._painting is not None
        self.previews += 1
        yield from self._painting.preview(data, image_format)

    def _made(self, piece: PictureMade) -> Iterator[ItemEvent]:
        yield from self._open_picture()
        assert self._painting is not None
        item, self._painting = self._painting, None
        item.made = piece
        self.pictures, self.previews = self.pictures + 1, 0
        yield from item.end("completed")

    def _ended(self, piece: ResponseEnd) -> Iterator[ItemEvent]:
        status = "completed" if piece.status == "completed" else "incomplete"
        if piece.status == "completed" and self._has_text and not any(map(_answers, self.items)):
            yield from self._turn_to("")
        yield from self._stop_writing(status)
        if self._painting is not None:
            yield from self._painting.end("incomplete")
        self.end, self.status = piece, piece.status
        yield self._about_all(_LAST_EVENT[piece.status])

    def _new_id(self, kind: str) -> str:
        return f"{kind}_{self._head['id'].partition('_')[2]}{len(self.items):04x}"

    def _about_all(self, kind: str) -> ItemEvent:
        number = self._next_number()
        return {"type": f"response.{kind}", "response": self.response(), "sequence_number": number}

    def _next_number(self) -> int:
        self._number += 1
        return self._number - 1


def _answers(item: ResponseItem) -> bool:
    return isinstance(item, MessageItem | FunctionCallItem)
