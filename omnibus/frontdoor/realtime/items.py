"""The items of a conversation, in order and bounded, and the messages that they are for a model. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from omnibus.errors import InvalidRequest, RequestConflict, RequestTooLarge
from omnibus.frontdoor.data_urls import to_base64, to_data_url
from omnibus.frontdoor.realtime.audio_buffer import from_wav
from omnibus.wire.request import AudioPart, ImagePart, Message, Part, TextPart

MAX_ITEMS = 1024
MAX_BYTES = 32 * 1024 * 1024
"""Bytes of all texts and files of a conversation."""
ROOT = "root"
"""The `previous_item_id` of the first item."""


@dataclass(slots=True)
class Content:
    """A part of an item."""

    type: str
    """input_text, input_audio, input_image, output_text, output_audio."""
    text: str = ""
    """The text, or the transcript of a sound that was made."""
    data: bytes = field(default=b"", repr=False)
    """A file: wav, or the image."""
    media_type: str = ""
    milliseconds: int = 0
    """Length of a sound that was sent; it is not kept."""

    def shown(self, *, is_whole: bool = False) -> dict[str, Any]:
        """The part in events; `is_whole`: with the sound of a user."""
        match self.type:
            case "input_audio":
                audio = {"audio": to_base64(from_wav(self.data))} if is_whole else {}
                return {"type": self.type, "transcript": None, **audio}
            case "input_image":
                return {"type": self.type, "image_url": to_data_url(self.data, self.media_type)}
            case "output_audio":
                return {"type": self.type, "transcript": self.text}
            case _:
                return {"type": self.type, "text": self.text}

    def part(self) -> Part | None:
        """The part in a message; None where nothing is left of it."""
        match self.type:
            case "input_audio":
                return AudioPart(data=self.data, media_type=self.media_type)
            case "input_image":
                return ImagePart(data=self.data, media_type=self.media_type)
            case _:
                return TextPart(text=self.text) if self.text else None


@dataclass(slots=True, eq=False)
class Item:
    """A turn, or what a client says in its place."""

    id: str
    role: str
    content: list[Content]
    status: str = "completed"

    def shown(self, *, is_whole: bool = False) -> dict[str, Any]:
        """The item in events."""
        content = [part.shown(is_whole=is_whole) for part in self.content]
        return {
            "id": self.id, "object": "realtime.item", "type": "message", "status": self.status, "role": self.role,
            "content": content,
        }  # fmt: skip

    def message(self) -> Message | None:
        """The turn of a chat; None for an empty one."""
        parts = tuple(part for content in self.content if (part := content.part()) is not None)
        if len(parts) == 1 and isinstance(parts[0], TextPart):
            return Message(role=self.role, content=parts[0].text)
        return Message(role=self.role, content=parts) if parts else None

    @property
    def size(self) -> int:
        return sum(len(content.text) + len(content.data) for content in self.content)


class Conversation:
    """Items in their order."""

    def __init__(self) -> None:
        self._items: list[Item] = []

    def before(self, item: Item) -> str | None:
        """The id of the item before this one; None where it is the first."""
        place = self._items.index(item)
        return self._items[place - 1].id if place else None

    def check_room(self, size: int) -> None:
        """Raises RequestTooLarge where one more item of so many bytes does not fit."""
        if len(self._items) >= MAX_ITEMS or size + sum(item.size for item in self._items) > MAX_BYTES:
            raise RequestTooLarge(
                f"a conversation has at most {MAX_ITEMS} items and {MAX_BYTES} bytes: delete items, or begin another"
            )

    def add(self, item: Item, previous: str | None = None) -> None:
        """Add an item behind `previous`, by default the last one.

        Raises RequestConflict for an id that is taken, InvalidRequest for an unknown `previous`.
        """
        if any(known.id == item.id for known in self._items):
            raise RequestConflict(f"there is an item {item.id!r} already", param="item.id")
        place = len(self._items)
        if previous is not None:
            place = 0 if previous == ROOT else self._items.index(self.find(previous, "previous_item_id")) + 1
        self._items.insert(place, item)

    def find(self, item_id: str, param: str = "item_id") -> Item:
        """The item of this id; raises InvalidRequest for none."""
        found = next((item for item in self._items if item.id == item_id), None)
        if found is None:
            raise InvalidRequest(f"there is no item {item_id!r} in this conversation", param=param)
        return found

    def delete(self, item_id: str) -> None:
        """Remove an item; raises as `find`, and RequestConflict for one that is being made."""
        found = self.find(item_id)
        if found.status == "in_progress":
            raise RequestConflict(f"the item {item_id!r} is being made: cancel the response first", param="item_id")
        self._items.remove(found)

    def truncate(self, item_id: str, content_index: int, end_ms: int) -> None:
        """Cut a sound that was sent; its transcript goes, as nobody knows which words were played.

        Raises InvalidRequest for anything but a finished sound of the assistant, or an end behind its own.
        """
        found = self.find(item_id)
        content = found.content[content_index] if content_index < len(found.content) else None
        if content is None or content.type != "output_audio" or found.status == "in_progress":
            message = f"only finished sound of the assistant can be truncated, and {item_id!r} has none there"
            raise InvalidRequest(message, param="content_index")
        if end_ms > content.milliseconds:
            raise InvalidRequest(f"the sound has {content.milliseconds} ms", param="audio_end_ms")
        content.text, content.milliseconds = "", end_ms

    def messages(self, instructions: str | None) -> tuple[Message, ...]:
        """The conversation as a chat."""
        before = (Message(role="system", content=instructions),) if instructions else ()
        return (*before, *_messages(self._items))


def _messages(items: Iterable[Item]) -> Iterator[Message]:
    return (message for item in items if (message := item.message()) is not None)
