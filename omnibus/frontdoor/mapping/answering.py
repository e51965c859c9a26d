"""From results to bodies, one function an endpoint. Sound and pictures come in the format that goes out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from omnibus.client.request_events import Output, Result
from omnibus.frontdoor.mapping.media import file_name, to_base64, to_data_url
from omnibus.frontdoor.schemas.chat import (
    AudioOut,
    ChatChoice,
    ChatCompletion,
    ContentOut,
    FileBytes,
    FileOut,
    ImageOut,
    MessageOut,
    TextOut,
    UrlOut,
)
from omnibus.frontdoor.schemas.common import Usage
from omnibus.frontdoor.schemas.completions import Completion, CompletionChoice
from omnibus.frontdoor.schemas.images import ImageData, ImagesAnswer, ImageUsage
from omnibus.requests.record import DONE_TTL

_FINISH_REASONS = frozenset({"stop", "length"})
"""What OpenAI's clients know; anything else that an engine says reads as stop."""


@dataclass(frozen=True, slots=True)
class Head:
    """What every body of one answer begins with."""

    rid: str
    model: str
    """The name that the caller used."""
    created: int
    """Seconds since the epoch."""


def chat_completion(head: Head, outputs: Sequence[Output]) -> ChatCompletion:
    """One choice with everything that was asked for."""
    return ChatCompletion(
        id=chat_id(head),
        object="chat.completion",
        created=head.created,
        model=head.model,
        choices=[ChatChoice(index=0, message=message(head, outputs), finish_reason=finish_reason(outputs))],
        usage=usage(outputs),
    )


def message(head: Head, outputs: Sequence[Output]) -> MessageOut:
    """Text alone is a string; with anything beside it, a list of parts. The first sound is `audio`."""
    sound = next((output for output in outputs if output.modality == "audio" and output.items), None)
    parts = [part for output in outputs if output is not sound for part in content_parts(output)]
    content = parts[0].text if len(parts) == 1 and isinstance(parts[0], TextOut) else (parts or None)
    if sound is None:
        return MessageOut(role="assistant", content=content, refusal=None)
    return MessageOut(role="assistant", content=content, refusal=None, audio=audio(head, sound, transcript(outputs)))


def content_parts(output: Output) -> list[ContentOut]:
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


def audio(head: Head, output: Output, answer: str) -> AudioOut:
    """A sound of a chat; its id is the request's."""
    return AudioOut(
        id=f"audio-{head.rid}",
        data=to_base64(output.items[0]),
        transcript=answer,
        expires_at=head.created + DONE_TTL,
    )


def transcript(outputs: Iterable[Output]) -> str:
    """The text that goes with a sound: what was delivered beside it."""
    return next((output.text for output in outputs if output.modality == "text"), "")


def completion(head: Head, outputs: Sequence[Output]) -> Completion:
    """The one text."""
    choice = CompletionChoice(index=0, text=transcript(outputs), logprobs=None, finish_reason=finish_reason(outputs))
    return Completion(
        id=completion_id(head),
        object="text_completion",
        created=head.created,
        model=head.model,
        choices=[choice],
        usage=usage(outputs),
    )


def images(head: Head, outputs: Sequence[Output], *, as_urls: bool, image_format: str) -> ImagesAnswer:
    """Every image of every output."""
    return ImagesAnswer(
        created=head.created,
        output_format=image_format,
        data=[_image(item, output.media_type, as_urls) for output in outputs for item in output.items],
        usage=image_usage(outputs),
    )


def usage(outputs: Iterable[Output]) -> Usage:
    """Tokens of all delivered outputs together; the prompt's once: what later stages read, earlier ones wrote."""
    counts = [output.usage for output in outputs]
    read = next((count.prompt_tokens for count in counts if count.prompt_tokens), 0)
    written = sum(count.completion_tokens for count in counts)
    return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


def image_usage(outputs: Iterable[Output]) -> ImageUsage:
    """The same under the names that the images API has."""
    total = usage(outputs)
    return ImageUsage(
        input_tokens=total.prompt_tokens, output_tokens=total.completion_tokens, total_tokens=total.total_tokens
    )


def finish_reason(outputs: Iterable[Output]) -> str:
    """Why the text ended; stop where there is none."""
    reason = next((output.finish_reason for output in outputs if output.modality == "text"), "stop")
    return reason if reason in _FINISH_REASONS else "stop"


def head_of(result: Result, model: str) -> Head:
    return Head(rid=result.rid, model=model, created=int(result.created))


def chat_id(head: Head) -> str:
    return f"chatcmpl-{head.rid}"


def completion_id(head: Head) -> str:
    return f"cmpl-{head.rid}"


def _image(item: bytes, media_type: str, as_url: bool) -> ImageData:
    return ImageData(url=to_data_url(item, media_type)) if as_url else ImageData(b64_json=to_base64(item))
