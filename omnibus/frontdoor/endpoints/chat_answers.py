"""Answers of `/v1/chat/completions`: whole, and in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from omnibus.client.request_events import Output
from omnibus.frontdoor.answers import Usage, finish_reason, transcript, usage
from omnibus.frontdoor.bodies import Answer
from omnibus.frontdoor.data_urls import file_name, to_base64, to_data_url
from omnibus.frontdoor.live_sound import pieces_of
from omnibus.frontdoor.streaming import TextStream
from omnibus.frontdoor.submitting import Head
from omnibus.requests.record import ENDED_TTL


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


class MessageOut(TypedDict):
    """The assistant's turn, or a piece of it in a stream."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str | list[ContentOut] | None]
    """The text, when text is all there is; else a list of parts in the order of the stages."""
    refusal: NotRequired[None]
    audio: NotRequired[AudioOut | None]


class ChatChoice(TypedDict):
    index: int
    message: MessageOut
    finish_reason: str


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChunkChoice(TypedDict):
    index: int
    delta: MessageOut
    finish_reason: str | None


class ChatChunk(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[Usage | None]


def chat_completion(head: Head, outputs: Sequence[Output]) -> ChatCompletion:
    """One choice with everything that was asked for."""
    return ChatCompletion(
        id=_chat_id(head),
        object="chat.completion",
        created=head.created,
        model=head.model,
        choices=[ChatChoice(index=0, message=_message(head, outputs), finish_reason=finish_reason(outputs))],
        usage=usage(outputs),
    )


class ChatStream(TextStream):
    """A chat's chunks: text and sound as they come, any other output whole, as soon as it is ready."""

    _transcribed: int | None = None
    """Pieces of the text that went out beside the sound; None before the sound has begun."""

    def opening(self) -> list[Answer]:
        """The chunk that says who speaks."""
        return [self._chunk(MessageOut(role="assistant", content=""))]

    def piece(self, text: str | None, reason: str | None = None) -> ChatChunk:
        return self._chunk(MessageOut() if text is None else MessageOut(content=text), reason)

    def output(self, output: Output) -> Iterator[Answer]:
        """A finished output, or what is left of the sound; the text that streamed has been sent."""
        if output.stage_id == self.live:
            return
        if output.modality == "audio" and output.items and self.live_sound.is_of(output.stage_id):
            yield from self.sound(output.items[0], is_whole=True)
            return
        yield from (self._chunk(MessageOut(content=[part])) for part in _content_parts(output))

    def sound(self, data: bytes, *, is_whole: bool = False) -> Iterator[Answer]:
        """The next bytes of the sound, with the text that came meanwhile; at its end also the text alone."""
        for piece in pieces_of(data) or [b""] * is_whole:
            has_begun, said = self._transcribed is not None, "".join(self.sent[self._transcribed or 0 :])
            if piece or said or not has_begun:
                self._transcribed = len(self.sent)
                audio = AudioOut(data=to_base64(piece)) if has_begun else _audio(self.head, piece, said)
                yield self._chunk(MessageOut(audio={**audio, "transcript": said} if said else audio))

    def totals(self, total: Usage) -> ChatChunk:
        return self._build([], total)

    def _chunk(self, delta: MessageOut, reason: str | None = None) -> ChatChunk:
        return self._build([ChunkChoice(index=0, delta=delta, finish_reason=reason)])

    def _build(self, choices: list[ChunkChoice], total: Usage | None = None) -> ChatChunk:
        head = self.head
        chunk = ChatChunk(
            id=_chat_id(head), object="chat.completion.chunk", created=head.created, model=head.model, choices=choices
        )
        # A caller that asked for usage finds it in every chunk, None until the last.
        return {**chunk, "usage": total} if self.include_usage else chunk


def _message(head: Head, outputs: Sequence[Output]) -> MessageOut:
    """Text alone is a string; with anything beside it, a list of parts. The first sound is `audio`."""
    sound = next((output for output in outputs if output.modality == "audio" and output.items), None)
    parts = [part for output in outputs if output is not sound for part in _content_parts(output)]
    content = parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else (parts or None)
    if sound is None:
        return MessageOut(role="assistant", content=content, refusal=None)
    return MessageOut(
        role="assistant", content=content, refusal=None, audio=_audio(head, sound.items[0], transcript(outputs))
    )


def _content_parts(output: Output) -> list[ContentOut]:
    """The parts of one output: a text, or a file as a data URL."""
    if output.modality == "text":
        return [TextOut(type="text", text=output.text)]
    urls = [to_data_url(item, output.media_type) for item in output.items]
    if output.modality == "image":
        return [ImageOut(type="image_url", image_url=UrlOut(url=url)) for url in urls]
    names = [file_name(f"{output.modality}-{index}", output.media_type) for index in range(len(urls))]
    return [
        FileOut(type="file", file=FileBytes(filename=name, file_data=url))
        for name, url in zip(names, urls, strict=True)
    ]


def _audio(head: Head, data: bytes, text: str) -> AudioOut:
    """A sound of a chat, with the text that was delivered beside it; its id is the request's."""
    return AudioOut(
        id=f"audio-{head.rid}",
        data=to_base64(data),
        transcript=text,
        expires_at=head.created + ENDED_TTL,
    )


def _chat_id(head: Head) -> str:
    return f"chatcmpl-{head.rid}"
