"""One response: the events of an answer while it is made, and the item that it becomes. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omnibus.errors import OmnibusError
from omnibus.frontdoor.answers import MediaUsage
from omnibus.frontdoor.data_urls import to_base64
from omnibus.frontdoor.error_answers import error_detail
from omnibus.frontdoor.live_sound import pieces_of
from omnibus.frontdoor.realtime.audio_buffer import SAMPLE_BYTES, milliseconds
from omnibus.frontdoor.realtime.items import Content, Item
from omnibus.frontdoor.realtime.session_settings import Asked
from omnibus.frontdoor.streaming import sliced
from omnibus.wire.request import Message

Event = dict[str, Any]
"""An event of the server, without its id."""


@dataclass(frozen=True, slots=True)
class End:
    """How a response ended: `completed`, `cancelled`, `incomplete` or `failed`."""

    status: str
    reason: str | None = None
    error: OmnibusError | None = None

    def shown(self) -> Event:
        reason = {"reason": self.reason} if self.reason is not None else {}
        error = {"error": error_detail(self.error)} if self.error is not None else {}
        return {"type": self.status, **reason, **error}


@dataclass(slots=True)
class Response:
    """A response and its request, which has this `rid`."""

    rid: str
    item: Item
    """The turn that it makes; it is in the conversation once `has_begun`."""
    asked: Asked
    messages: tuple[Message, ...] = field(repr=False)
    metadata: Mapping[str, str] | None = None
    has_begun: bool = False
    _bytes: int = 0
    """Bytes of sound that were sent."""

    @property
    def speaks(self) -> bool:
        """Whether sound is asked for; its text is the transcript then."""
        return "audio" in (self.asked.output_modalities or ())

    @property
    def _place(self) -> Event:
        return {"response_id": f"resp_{self.rid}", "item_id": self.item.id, "output_index": 0, "content_index": 0}

    @property
    def content(self) -> Content:
        return self.item.content[0]

    def created(self) -> Event:
        return {"type": "response.created", "response": self._shown("in_progress")}

    def opening(self) -> Iterator[Event]:
        """The events before the first piece."""
        self.has_begun = True
        yield self._item_event("added")
        yield {"type": "response.content_part.added", **self._place, "part": self._part()}

    def text(self, text: str) -> Iterator[Event]:
        """The next piece of the text."""
        kind = "response.output_audio_transcript.delta" if self.speaks else "response.output_text.delta"
        for piece in sliced(text):
            self.content.text += piece
            yield {"type": kind, **self._place, "delta": piece}

    def sound(self, data: bytes) -> Iterator[Event]:
        """The next bytes of the sound."""
        for piece in pieces_of(data):
            self._bytes += len(piece)
            self.content.milliseconds = milliseconds(self._bytes // SAMPLE_BYTES)
            yield {"type": "response.output_audio.delta", **self._place, "delta": to_base64(piece)}

    def closing(self, end: End, usage: MediaUsage | None = None) -> Iterator[Event]:
        """The last events."""
        if self.has_begun:
            self.item.status = "completed" if end.status == "completed" else "incomplete"
            text = self.content.text
            if self.speaks:
                yield {"type": "response.output_audio.done", **self._place}
                yield {"type": "response.output_audio_transcript.done", **self._place, "transcript": text}
            else:
                yield {"type": "response.output_text.done", **self._place, "text": text}
            yield {"type": "response.content_part.done", **self._place, "part": self._part()}
            yield self._item_event("done")
        yield {"type": "response.done", "response": self._shown(end.status, end.shown(), usage)}

    def _part(self) -> Event:
        text = self.content.text
        return {"type": "audio", "transcript": text} if self.speaks else {"type": "text", "text": text}

    def _item_event(self, what: str) -> Event:
        shown = self.item.shown() if what == "done" else {**self.item.shown(), "content": []}
        return {
            "type": f"response.output_item.{what}", "response_id": f"resp_{self.rid}", "output_index": 0, "item": shown,
        }  # fmt: skip

    def _shown(self, status: str, details: Event | None = None, usage: MediaUsage | None = None) -> Event:
        return {
            "id": f"resp_{self.rid}", "object": "realtime.response", "status": status, "status_details": details,
            "output": [self.item.shown()] if self.has_begun else [], "output_modalities": self.asked.output_modalities,
            "max_output_tokens": self.asked.max_output_tokens, "metadata": self.metadata, "usage": usage,
        }  # fmt: skip
