"""`/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from omnibus.frontdoor.schemas.common import (
    Answer,
    AskingBody,
    Body,
    StreamOptions,
    TextSampling,
    Unsupported,
    Usage,
    only,
)

AudioFormat = Literal["wav", "pcm16", "pcm", "flac", "mp3", "opus"]


class TextContent(Body):
    type: Literal["text"]
    text: str


class RefusalContent(Body):
    """What a model refused with, in an earlier turn."""

    type: Literal["refusal"]
    refusal: str


class MediaUrl(Body):
    url: str


class ImageContent(Body):
    type: Literal["image_url"]
    image_url: MediaUrl


class VideoContent(Body):
    type: Literal["video_url"]
    video_url: MediaUrl


class InputAudio(Body):
    data: str
    """Base64 of the file."""
    format: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,16}$")] = "wav"


class AudioContent(Body):
    type: Literal["input_audio"]
    input_audio: InputAudio


Content = Annotated[
    TextContent | RefusalContent | ImageContent | VideoContent | AudioContent, Field(discriminator="type")
]


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Content] | None = None


class AudioOptions(Body):
    format: AudioFormat = "wav"
    voice: Any = None
    """Accepted and not used: a pipeline has the voice that it has."""


class ResponseFormat(Body):
    type: Annotated[str, only("text")]


class ChatBody(AskingBody, TextSampling):
    """A chat. Exactly one choice is made."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    modalities: list[str] | None = None
    """None: text where the pipeline has it, else all that it has."""
    audio: AudioOptions | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int | None, only(1)] = None
    response_format: ResponseFormat | None = None
    tools: Unsupported = None
    functions: Unsupported = None
    logprobs: Unsupported = None
    top_logprobs: Unsupported = None


class TextOut(Answer):
    type: Literal["text"] = "text"
    text: str


class UrlOut(Answer):
    url: str


class ImageOut(Answer):
    """An image as a data URL, as OpenAI's own content parts have it."""

    type: Literal["image_url"] = "image_url"
    image_url: UrlOut


class FileBytes(Answer):
    filename: str
    file_data: str


class FileOut(Answer):
    """An output that OpenAI's answers have no place for, as a data URL."""

    type: Literal["file"] = "file"
    file: FileBytes


ContentOut = TextOut | ImageOut | FileOut


class AudioOut(Answer):
    id: str
    data: str
    """Base64 of the file."""
    transcript: str
    expires_at: int
    """Until when the request can be read again, seconds since the epoch."""


class MessageOut(Answer):
    """The assistant's turn, or a piece of it in a stream."""

    role: Literal["assistant"] = "assistant"
    content: str | list[ContentOut] | None = None
    """The text, when text is all there is; else a list of parts in the order of the stages."""
    refusal: None = None
    audio: AudioOut | None = None


class ChatChoice(Answer):
    index: int
    message: MessageOut
    finish_reason: str


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChunkChoice(Answer):
    index: int
    delta: MessageOut
    finish_reason: str | None


class ChatChunk(Answer):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
