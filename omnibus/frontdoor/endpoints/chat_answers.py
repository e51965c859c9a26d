"""The whole answer of `/v1/chat/completions`, and the parts that it shares with a streamed one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec
from typing_extensions import TypedDict

from omnibus.client.request_events import Output
from omnibus.frontdoor.answers import known_reason, transcript, usage
from omnibus.frontdoor.data_urls import file_name, to_base64, to_data_url
from omnibus.frontdoor.endpoints.chat_shapes import (
    AudioOut,
    CalledOut,
    CallOut,
    ChatChoice,
    ChatCompletion,
    ContentOut,
    FileBytes,
    FileOut,
    ImageOut,
    LogprobsOut,
    MessageOut,
    TextOut,
    UrlOut,
)
from omnibus.frontdoor.submitting import Head
from omnibus.requests.record import ENDED_TTL
from omnibus.wire.envelope import StageTiming
from omnibus.wire.fields import PROMPT_LOGPROBS, Choice


def chat_completion(head: Head, outputs: Sequence[Output], timings: Sequence[StageTiming] = ()) -> ChatCompletion:
    """The choices, the first of them with every output that was asked for."""
    text = next((output for output in outputs if output.modality == "text"), None)
    first, *others = text.choices if text is not None else (Choice(index=0, text="", finish_reason="stop"),)
    message = {**_message(head, outputs), **_beside(first)}
    if first.tool_calls and not message["content"]:
        message["content"] = None
    choices = [ChatChoice(index=0, message=cast("MessageOut", message), **_end(first))]
    for other in others:
        turn = MessageOut(role="assistant", content=other.text or None, refusal=None)
        choices.append(
            ChatChoice(index=other.index, message=cast("MessageOut", {**turn, **_beside(other)}), **_end(other))
        )
    answer = ChatCompletion(
        id=chat_id(head),
        object="chat.completion",
        created=head.created,
        model=head.model,
        choices=choices,
        usage=usage(outputs, timings),
    )
    prompt = text.fields.get(PROMPT_LOGPROBS) if text is not None else None
    return answer if prompt is None else {**answer, "prompt_logprobs": msgspec.Raw(prompt.encode())}


def _beside(choice: Choice) -> MessageOut:
    """The parts of a choice beside its text."""
    beside = MessageOut()
    if choice.reasoning is not None:
        beside = MessageOut(reasoning=choice.reasoning, reasoning_content=choice.reasoning)
    if choice.tool_calls:
        beside["tool_calls"] = [
            CallOut(
                id=call.id,
                type="function",
                function=CalledOut(name=call.function.name, arguments=call.function.arguments),
            )
            for call in choice.tool_calls
        ]
    return beside


class _ChoiceEnd(TypedDict):
    logprobs: LogprobsOut | None
    finish_reason: str


def _end(choice: Choice) -> _ChoiceEnd:
    logprobs = None if choice.logprobs is None else LogprobsOut(content=list(choice.logprobs), refusal=None)
    return _ChoiceEnd(logprobs=logprobs, finish_reason=known_reason(choice.finish_reason))


def _message(head: Head, outputs: Sequence[Output]) -> MessageOut:
    """Text alone is a string; with anything beside it, a list of parts. The first sound is `audio`."""
    sound = next((output for output in outputs if output.modality == "audio" and output.items), None)
    parts = [part for output in outputs if output is not sound for part in content_parts(output)]
    content = parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else (parts or None)
    if sound is None:
        return MessageOut(role="assistant", content=content, refusal=None)
    return MessageOut(
        role="assistant", content=content, refusal=None, audio=sound_out(head, sound.items[0], transcript(outputs))
    )


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


def sound_out(head: Head, data: bytes, text: str) -> AudioOut:
    """A sound of a chat, with the text that was delivered beside it; its id is the request's."""
    return AudioOut(
        id=f"audio-{head.rid}",
        data=to_base64(data),
        transcript=text,
        expires_at=head.created + ENDED_TTL,
    )


def chat_id(head: Head) -> str:
    return f"chatcmpl-{head.rid}"
