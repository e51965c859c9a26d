"""Shapes of the answers of `/v1/chat/completions`, whole and in chunks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from omnibus.frontdoor.answers import Usage


class TextOut(TypedDict):
    type: Literal["text"]
    text: str


class UrlOut(TypedDict):
    url: str


class ImageOut(TypedDict):
    """An image as a data URL, as OpenAI's own content parts have it."""

    type: Literal["image_url"]
    image_url: UrlOut


class FileBytes(TypedDict):
    filename: str
    file_data: str


class FileOut(TypedDict):
    """An output that OpenAI's answers have no place for, as a data URL."""

    type: Literal["file"]
    file: FileBytes


ContentOut = TextOut | ImageOut | FileOut


class AudioOut(TypedDict):
    """A sound, or a piece of it in a stream, where the first piece alone has `id` and `expires_at`."""

    id: NotRequired[str | None]
    data: str
    """Base64 of the file, or of the next bytes of it: joined, the pieces are the whole."""
    transcript: NotRequired[str | None]
    """The text, or what came of it since the last piece."""
    expires_at: NotRequired[int | None]
    """Until when the request can be read again, seconds since the epoch."""


class VideoOut(TypedDict):
    """A piece of a video in a stream, where the first one alone has `media_type`."""

    data: str
    """Base64 of the next bytes of the file: decoded and joined, the pieces are the whole."""
    media_type: NotRequired[str]


class CalledOut(TypedDict):
    name: NotRequired[str]
    arguments: str
    """JSON, or the next piece of it in a stream."""


class CallOut(TypedDict):
    """A call of a tool, or a piece of it in a stream, where only the first piece has `id`, `type` and the name."""

    index: NotRequired[int]
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: CalledOut


class LogprobsOut(TypedDict):
    content: list[Mapping[str, object]]
    """`{token, logprob, bytes, top_logprobs}` of each token."""
    refusal: NotRequired[None]


class MessageOut(TypedDict):
    """The assistant's turn, or a piece of it in a stream."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str | list[ContentOut] | None]
    """The text, when text is all there is; else a list of parts in the order of the stages."""
    refusal: NotRequired[None]
    reasoning: NotRequired[str]
    reasoning_content: NotRequired[str]
    """The same under its older name."""
    tool_calls: NotRequired[list[CallOut]]
    audio: NotRequired[AudioOut | None]
    video: NotRequired[VideoOut]
    """In streams, of a stage that makes it in pieces; elsewhere a video is a part of `content`."""


class ChatChoice(TypedDict):
    index: int
    message: MessageOut
    logprobs: LogprobsOut | None
    finish_reason: str


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: NotRequired[object]


class ChunkChoice(TypedDict):
    index: int
    delta: MessageOut
    logprobs: NotRequired[LogprobsOut | None]
    finish_reason: str | None


class ChatChunk(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[Usage | None]
