"""The items of a response's output while they grow: their shapes, and the events about them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omnibus.frontdoor.data_urls import to_base64
from omnibus.frontdoor.responses.log_pieces import PictureMade

ItemEvent = dict[str, Any]
"""An event without its number."""


@dataclass(slots=True)
class ResponseItem:
    """One item. A subclass says how it looks and which events its growth has."""

    item_id: str
    index: int
    pieces: list[str] = field(default_factory=list)
    status: str = "in_progress"

    @property
    def text(self) -> str:
        """Its text as it is now."""
        return "".join(self.pieces)

    def shape(self) -> dict[str, Any]:
        """The item as it is now."""
        raise NotImplementedError

    def begin(self) -> Iterator[ItemEvent]:
        """Events of its beginning."""
        yield {"type": "response.output_item.added", "output_index": self.index, "item": self.shape()}

    def grow(self, text: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> Iterator[ItemEvent]:
        """Events of its next piece."""
        raise NotImplementedError

    def end(self, status: str) -> Iterator[ItemEvent]:
        """Events of its end."""
        self.status = status
        yield {"type": "response.output_item.done", "output_index": self.index, "item": self.shape()}

    def _event(self, kind: str, **fields: Any) -> ItemEvent:
        return {"type": f"response.{kind}", "item_id": self.item_id, "output_index": self.index, **fields}


@dataclass(slots=True)
class MessageItem(ResponseItem):
    """The answer's text."""

    logprobs: list[Mapping[str, Any]] = field(default_factory=list)
    _has_part: bool = False

    def shape(self) -> dict[str, Any]:
        parts = [self._part()] if self._has_part else []
        return {"id": self.item_id, "type": "message", "role": "assistant", "status": self.status, "content": parts}

    def begin(self) -> Iterator[ItemEvent]:
        yield from ResponseItem.begin(self)
        self._has_part = True
        yield self._event("content_part.added", content_index=0, part=self._part())

    def grow(self, text: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> Iterator[ItemEvent]:
        self.pieces.append(text)
        self.logprobs += logprobs
        yield self._event("output_text.delta", content_index=0, delta=text, logprobs=list(logprobs))

    def end(self, status: str) -> Iterator[ItemEvent]:
        yield self._event("output_text.done", content_index=0, text=self.text, logprobs=self.logprobs)
        yield self._event("content_part.done", content_index=0, part=self._part())
        yield from ResponseItem.end(self, status)

    def _part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs}


@dataclass(slots=True)
class ReasoningItem(ResponseItem):
    """The reasoning before an answer, as it was written."""

    def shape(self) -> dict[str, Any]:
        content = [self._part()] if self.pieces else []
        return {
            "id": self.item_id, "type": "reasoning", "summary": [], "content": content, "encrypted_content": None,
            "status": self.status,
        }  # fmt: skip

    def begin(self) -> Iterator[ItemEvent]:
        yield from ResponseItem.begin(self)
        yield self._event("content_part.added", content_index=0, part=self._part())

    def grow(self, text: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> Iterator[ItemEvent]:  # noqa: ARG002 of texts
        self.pieces.append(text)
        yield self._event("reasoning_text.delta", content_index=0, delta=text)

    def end(self, status: str) -> Iterator[ItemEvent]:
        yield self._event("reasoning_text.done", content_index=0, text=self.text)
        yield self._event("content_part.done", content_index=0, part=self._part())
        yield from ResponseItem.end(self, status)

    def _part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": self.text}


@dataclass(slots=True)
class FunctionCallItem(ResponseItem):
    """A call of a function; its text are the arguments."""

    call_id: str = ""
    name: str = ""

    def shape(self) -> dict[str, Any]:
        return {
            "id": self.item_id, "type": "function_call", "call_id": self.call_id, "name": self.name,
            "arguments": self.text, "status": self.status,
        }  # fmt: skip

    def grow(self, text: str, logprobs: Sequence[Mapping[str, Any]] = ()) -> Iterator[ItemEvent]:  # noqa: ARG002 of texts
        self.pieces.append(text)
        yield self._event("function_call_arguments.delta", delta=text)

    def end(self, status: str) -> Iterator[ItemEvent]:
        yield self._event("function_call_arguments.done", name=self.name, arguments=self.text)
        yield from ResponseItem.end(self, status)


@dataclass(slots=True)
class PictureItem(ResponseItem):
    """A picture that the pipeline paints."""

    made: PictureMade | None = None
    previews: int = 0

    def shape(self) -> dict[str, Any]:
        item = {"id": self.item_id, "type": "image_generation_call", "status": self.status, "result": None}
        if self.made is not None:
            result = to_base64(self.made.data)
            item |= {"result": result, "output_format": self.made.image_format, "size": self.made.size}
        return item

    def begin(self) -> Iterator[ItemEvent]:
        yield from ResponseItem.begin(self)
        yield self._event("image_generation_call.in_progress")
        self.status = "generating"
        yield self._event("image_generation_call.generating")

    def preview(self, data: bytes, image_format: str) -> Iterator[ItemEvent]:
        """The event of a picture on the way."""
        yield self._event(
            "image_generation_call.partial_image", partial_image_index=self.previews, partial_image_b64=to_base64(data),
            output_format=image_format,
        )  # fmt: skip
        self.previews += 1

    def end(self, status: str) -> Iterator[ItemEvent]:
        if self.made is not None:
            status = "completed"
            yield self._event("image_generation_call.completed")
        yield from ResponseItem.end(self, "failed" if status == "incomplete" else status)
