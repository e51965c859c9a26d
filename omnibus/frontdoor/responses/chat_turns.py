"""The items of a response's input as the turns of a chat, and where each turn came from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from omnibus.errors import InvalidRequest
from omnibus.frontdoor.chat_messages import (
    AudioContent,
    CalledFunction,
    CalledTool,
    ChatMessage,
    Content,
    ImageContent,
    InputAudio,
    MediaUrl,
    RefusalContent,
    TextContent,
    VideoContent,
)
from omnibus.frontdoor.data_urls import from_data_url, to_base64
from omnibus.frontdoor.responses.input_items import (
    FilePartIn,
    FunctionCallIn,
    FunctionOutputIn,
    InputContent,
    InputItem,
    MessageIn,
    PictureIn,
    PicturePartIn,
    ReasoningIn,
    SoundPartIn,
)

_PLACE = re.compile(r"messages\[(\d+)\](\.content\[(\d+)\])?(.*)")
_FAMILY = re.compile(r"data:(image|audio|video|text)/([A-Za-z0-9.+-]+)")


@dataclass(slots=True)
class _Turn:
    """A turn of the assistant, which takes its reasoning, its text and its calls together."""

    place: str
    reasoning: str = ""
    content: list[Content] | None = None
    calls: list[CalledTool] = field(default_factory=list)


@dataclass(slots=True)
class ChatTurns:
    """Turns, in order."""

    files: Mapping[str, str]
    """Stored files as data URLs, by id."""
    messages: list[ChatMessage] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    """The caller's name of each."""
    _given: list[Sequence[InputContent]] = field(default_factory=list)
    """The parts of each."""
    _turn: _Turn | None = None

    def instruct(self, instructions: str) -> None:
        """Add what comes before all."""
        self._add(ChatMessage(role="developer", content=instructions), "instructions")

    def add(self, items: Iterable[InputItem], place: str, *, numbered: bool = False) -> None:
        """Add items; `place` is their caller's name, `numbered` where each has one. Raises InvalidRequest naming the field."""
        for number, item in enumerate(items):
            self._item(item, f"{place}[{number}]" if numbered else place)
        self._flush()

    def field_of(self, param: str) -> str:
        """The caller's name of what a chat calls `param`."""
        found = _PLACE.fullmatch(param)
        if found is None or int(found[1]) >= len(self.places):
            return param
        place = self.places[int(found[1])]
        if not place.startswith("input["):
            return place
        if found[2] is None:
            return f"{place}{found[4]}"
        return f"{place}.content[{found[3]}].{self._name_of(int(found[1]), int(found[3]))}"

    def _name_of(self, turn: int, part: int) -> str:
        """The field of a part that has its content."""
        given = self._given[turn]
        match given[part] if part < len(given) else None:
            case PicturePartIn(file_id=None):
                return "image_url"
            case FilePartIn(file_id=None):
                return "file_data"
            case PicturePartIn() | FilePartIn():
                return "file_id"
            case SoundPartIn():
                return "input_audio"
        return "text"

    def _item(self, item: InputItem, place: str) -> None:
        match item:
            case PictureIn():
                return
            case ReasoningIn():
                self._assistant(place, begins=True).reasoning += item.text
            case FunctionCallIn():
                function = CalledFunction(name=item.name, arguments=item.arguments)
                self._assistant(place).calls.append(CalledTool(id=item.call_id, function=function))
            case FunctionOutputIn():
                self._flush()
                content = self._contents(item.output, f"{place}.output")
                self._add(ChatMessage(role="tool", content=content, tool_call_id=item.call_id), place, item.output)
            case MessageIn(role="assistant"):
                turn = self._assistant(place, begins=True)
                found = self._contents(item.content, f"{place}.content")
                turn.content = [TextContent(type="text", text=found)] if isinstance(found, str) else found
            case MessageIn():
                self._flush()
                content = self._contents(item.content, f"{place}.content")
                self._add(ChatMessage(role=item.role, content=content), place, item.content)

    def _assistant(self, place: str, *, begins: bool = False) -> _Turn:
        """The assistant's turn that an item belongs to; reasoning and text begin one behind a text or a call."""
        if begins and self._turn is not None and (self._turn.content is not None or self._turn.calls):
            self._flush()
        if self._turn is None:
            self._turn = _Turn(place)
        return self._turn

    def _flush(self) -> None:
        turn, self._turn = self._turn, None
        if turn is None:
            return
        content = turn.content
        text = content[0].text if content and len(content) == 1 and isinstance(content[0], TextContent) else content
        message = ChatMessage(
            role="assistant", content=text, reasoning=turn.reasoning or None, tool_calls=turn.calls or None
        )  # fmt: skip
        self._add(message, turn.place)

    def _contents(self, given: str | Sequence[InputContent], where: str) -> str | list[Content]:
        if isinstance(given, str):
            return given
        return [self._content(part, f"{where}[{number}]") for number, part in enumerate(given)]

    def _content(self, part: InputContent, where: str) -> Content:
        match part:
            case PicturePartIn():
                url = self._url(part.image_url, part.file_id, where, "image_url")
                return ImageContent(type="image_url", image_url=MediaUrl(url=url))
            case FilePartIn():
                return _file(self._url(part.file_data, part.file_id, where, "file_data"), where)
            case SoundPartIn():
                return AudioContent(type="input_audio", input_audio=part.input_audio)
            case RefusalContent():
                return part
        return TextContent(type="text", text=part.text)

    def _url(self, url: str | None, file_id: str | None, where: str, name: str) -> str:
        if (url is None) == (file_id is None):
            raise InvalidRequest(f"give one of {name} and file_id", param=where)
        return url if url is not None else self.files[file_id or ""]

    def _add(self, message: ChatMessage, place: str, given: str | Sequence[InputContent] = ()) -> None:
        self.messages.append(message)
        self.places.append(place)
        self._given.append(() if isinstance(given, str) else given)


def _file(url: str, where: str) -> Content:
    """A file as the part of a chat that its media type says."""
    found = _FAMILY.match(url[:256])
    family = found[1] if found is not None else ""
    if family == "image":
        return ImageContent(type="image_url", image_url=MediaUrl(url=url))
    if family == "video":
        return VideoContent(type="video_url", video_url=MediaUrl(url=url))
    if found is None:
        what = "a data: URL, or a stored file, of a picture, a sound, a video or a text"
        raise InvalidRequest(f"give {what}", param=f"{where}.file_data")
    data, _ = from_data_url(url, family, param=f"{where}.file_data")
    if family == "audio":
        sound = InputAudio(data=to_base64(data), format=found[2].removeprefix("x-"))
        return AudioContent(type="input_audio", input_audio=sound)
    try:
        return TextContent(type="text", text=data.decode())
    except UnicodeDecodeError as error:
        raise InvalidRequest("the text is not UTF-8", param=f"{where}.file_data") from error


def file_ids(items: Iterable[InputItem]) -> set[str]:
    """The stored files that items name."""
    contents = (item.content if isinstance(item, MessageIn) else getattr(item, "output", None) for item in items)
    parts = (part for content in contents if isinstance(content, list) for part in content)
    return {part.file_id for part in parts if isinstance(part, PicturePartIn | FilePartIn) and part.file_id is not None}
