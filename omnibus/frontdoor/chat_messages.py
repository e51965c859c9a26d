"""The messages of a chat, as callers send them and as a request has them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from omnibus.errors import InvalidRequest
from omnibus.frontdoor.bodies import NAME_LENGTH, Body, Matching
from omnibus.frontdoor.data_urls import audio_type, file_at, from_base64, from_data_url
from omnibus.frontdoor.named_files import file_part
from omnibus.frontdoor.outbound.web_files import NOTHING_FETCHED, Fetched, NamedFile, is_web_address
from omnibus.wire.request import AudioPart, FunctionCall, ImagePart, Message, Part, TextPart, ToolCall, VideoPart

MAX_MESSAGES = 4096
MAX_PARTS = 1024
"""Parts of one message."""
_FILE = re.compile(r"(?P<place>messages\[(?P<turn>\d+)\]\.content\[(?P<part>\d+)\])\.(?P<kind>image|audio|video)")
_FIELDS = {"image": ("image_url",), "audio": ("input_audio", "audio_url"), "video": ("video_url",)}
"""Names of the field that holds a file, by what it is."""
_ANY = "file"
"""The name of one that may hold any."""


class TextContent(Body):
    type: Literal["text"]
    text: str


class RefusalContent(Body):
    """The text that a model refused with, in an earlier turn."""

    type: Literal["refusal"]
    refusal: str


class MediaUrl(Body):
    url: str
    """A data URL, or a web address where the operator allows its host."""


class FileContent(Body):
    argument: Annotated[str, Field(max_length=NAME_LENGTH)] | None = None
    """The argument of a diffusion pipeline that the file is, such as `mask_image`."""


class ImageContent(FileContent):
    type: Literal["image_url"]
    image_url: MediaUrl


class VideoContent(FileContent):
    type: Literal["video_url"]
    video_url: MediaUrl


class InputAudio(Body):
    data: str
    """Base64 of the file."""
    format: Annotated[str, Matching(r"[a-z0-9-]{1,16}", "the name of a format, such as wav or mp3")] = "wav"


class AudioUrlContent(FileContent):
    type: Literal["audio_url"]
    audio_url: MediaUrl


class NamedFileIn(Body):
    """A file: one of `file_id` and `file_data`."""

    file_id: str | None = None
    """The id of a file of the caller's."""
    file_data: str | None = None
    """A data URL."""
    filename: str | None = None


class AnyFileContent(FileContent):
    """A picture, a sound or a video, as its content shows."""

    type: Literal["file"]
    file: NamedFileIn


class AudioContent(FileContent):
    type: Literal["input_audio"]
    input_audio: InputAudio


Content = Annotated[
    TextContent | RefusalContent | ImageContent | VideoContent | AudioContent | AudioUrlContent | AnyFileContent,
    Field(discriminator="type"),
]


class CalledFunction(Body):
    name: str
    arguments: str


class CalledTool(Body):
    """A call of an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Content], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """The reasoning of an earlier turn, by its newer and its older name."""
    refusal: str | None = None
    """The text of an earlier turn that refused."""
    tool_calls: Annotated[list[CalledTool], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    tool_call_id: str | None = None


def content_field(param: str, messages: Sequence[ChatMessage] = ()) -> str:
    """The caller's name of a part of a turn; any other field's is the same."""
    found = _FILE.fullmatch(param)
    if found is None:
        return param
    names, part = _FIELDS[found["kind"]], _part_at(messages, int(found["turn"]), int(found["part"]))
    return f"{found['place']}.{next((name for name in (*names, _ANY) if hasattr(part, name)), names[0])}"


def _part_at(messages: Sequence[ChatMessage], turn: int, part: int) -> Content | None:
    content = messages[turn].content if turn < len(messages) else None
    return content[part] if isinstance(content, list) and part < len(content) else None


def files_in(messages: Sequence[ChatMessage]) -> Iterator[NamedFile]:
    """The files that a chat names by web addresses."""
    for place, message in enumerate(messages):
        for index, part in enumerate(message.content if isinstance(message.content, list) else ()):
            if isinstance(part, AnyFileContent) and part.file.file_id is not None:
                param = f"messages[{place}].content[{index}].file.file_id"
                yield NamedFile(part.file.file_id, param, is_stored=True)
            url = _url_of(part)
            if url is not None and is_web_address(url):
                yield NamedFile(url, f"messages[{place}].content[{index}].{part.type}.url")


def _url_of(part: Content) -> str | None:
    match part:
        case ImageContent():
            return part.image_url.url
        case VideoContent():
            return part.video_url.url
        case AudioUrlContent():
            return part.audio_url.url
    return None


def turns(messages: Sequence[ChatMessage], fetched: Fetched = NOTHING_FETCHED) -> tuple[Message, ...]:
    """The turns of a chat, their media decoded, those of web addresses fetched; raises RequestError naming the field."""
    return tuple(_message(message, f"messages[{index}]", fetched) for index, message in enumerate(messages))


def _message(message: ChatMessage, where: str, fetched: Fetched) -> Message:
    # Chat templates know no "developer": it is OpenAI's newer name of "system".
    role = "system" if message.role == "developer" else message.role
    content: str | tuple[Part, ...] = message.refusal or "" if not message.content else ""
    if isinstance(message.content, list):
        content = tuple(_part(part, f"{where}.content[{index}]", fetched) for index, part in enumerate(message.content))
    elif message.content:
        content = message.content
    calls = (
        ToolCall(id=call.id, function=FunctionCall(name=call.function.name, arguments=call.function.arguments))
        for call in message.tool_calls or ()
    )
    return Message(
        role=role, content=content, name=message.name or None, tool_calls=tuple(calls),
        tool_call_id=message.tool_call_id or None, reasoning=message.reasoning or message.reasoning_content or None,
    )  # fmt: skip


def _part(content: Content, where: str, fetched: Fetched) -> Part:
    if isinstance(content, TextContent):
        return TextPart(text=content.text)
    if isinstance(content, RefusalContent):
        return TextPart(text=content.refusal)
    if isinstance(content, AudioContent):
        data = from_base64(content.input_audio.data, param=f"{where}.input_audio.data")
        return AudioPart(data=data, media_type=audio_type(content.input_audio.format), argument=content.argument)
    if isinstance(content, AnyFileContent):
        return _any_part(content, where, fetched)
    family, kind = _KINDS[type(content)]
    data, media_type = file_at(_url_of(content) or "", family, fetched, param=f"{where}.{content.type}.url")
    named = {} if media_type is None else {"media_type": media_type}
    return kind(data=data, argument=content.argument, **named)


def _any_part(content: AnyFileContent, where: str, fetched: Fetched) -> Part:
    file = content.file
    if (file.file_id is None) == (file.file_data is None):
        raise InvalidRequest("give one of file_id and file_data", param=f"{where}.file")
    if file.file_data is not None:
        field = f"{where}.file.file_data"
        return file_part(from_data_url(file.file_data, None, param=field)[0], content.argument, param=field)
    stored, field = fetched.get(file.file_id or ""), f"{where}.file.file_id"
    if stored is None:
        raise InvalidRequest("stored files are not read here: send file_data", param=field)
    return file_part(stored.data, content.argument, param=field)


_KINDS: Mapping[type[Body], tuple[str, type[ImagePart | AudioPart | VideoPart]]] = {
    ImageContent: ("image", ImagePart), VideoContent: ("video", VideoPart), AudioUrlContent: ("audio", AudioPart),
}  # fmt: skip
"""Family of the media types of a file, and the part that it becomes."""
