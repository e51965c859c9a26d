"""From bodies to requests, one function an endpoint. Raises RequestError naming the field.

Only what HTTP adds is checked here; whether the pipeline can serve the request is admission's to say.
"""

from __future__ import annotations

from typing import Any

from omnibus.errors import EmptyPrompt, InvalidRequest, UnsupportedModality
from omnibus.frontdoor.mapping.media import audio_type, from_base64, from_data_url
from omnibus.frontdoor.mapping.sampling import overridden, stage_params
from omnibus.frontdoor.schemas.chat import (
    AudioContent,
    ChatBody,
    ChatMessage,
    Content,
    ImageContent,
    RefusalContent,
    TextContent,
)
from omnibus.frontdoor.schemas.common import AskingBody
from omnibus.frontdoor.schemas.completions import CompletionBody
from omnibus.frontdoor.schemas.images import ImageBody
from omnibus.frontdoor.schemas.speech import SpeechBody
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import AudioPart, ImagePart, Message, Part, Request, TextPart, VideoPart

DEFAULT_TENANT = "default"


def chat_request(body: ChatBody, spec: PipelineSpec) -> Request:
    """A chat, its media decoded."""
    modalities = _chat_modalities(body, spec)
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    text = body.chosen() if limit is None else {**body.chosen(), "max_tokens": limit}
    return Request(
        messages=tuple(_message(message, f"messages[{index}]") for index, message in enumerate(body.messages)),
        modalities=modalities,
        sampling_params=_sampling(body, spec, modalities, text=text),
        **_common(body),
    )


def completion_request(body: CompletionBody, spec: PipelineSpec) -> Request:
    """A prompt to continue: only text is delivered."""
    _need(spec, "text")
    text = body.chosen() if body.max_tokens is None else {**body.chosen(), "max_tokens": body.max_tokens}
    return Request(
        prompt=_single_prompt(body.prompt),
        modalities=("text",),
        sampling_params=_sampling(body, spec, ("text",), text=text),
        **_common(body),
    )


def image_request(body: ImageBody, spec: PipelineSpec) -> Request:
    """A prompt to paint, as a chat of one turn: the first stage applies its template where it has one."""
    _need(spec, "image")
    given = {
        "n": body.n,
        "num_inference_steps": body.num_inference_steps,
        "guidance_scale": body.guidance_scale,
        "negative_prompt": body.negative_prompt,
        "previews": _steps_between_previews(body, spec),
        **_sides(body.size),
    }
    image = {name: value for name, value in given.items() if value is not None}
    return Request(
        messages=_single_turn(body.prompt, "prompt"),
        modalities=("image",),
        sampling_params=_sampling(body, spec, ("image",), image=image),
        **_common(body),
    )


def speech_request(body: SpeechBody, spec: PipelineSpec) -> Request:
    """A text to speak, as a chat of one turn."""
    _need(spec, "audio")
    return Request(
        messages=_single_turn(body.input, "input"),
        modalities=("audio",),
        sampling_params=_sampling(body, spec, ("audio",)),
        **_common(body),
    )


def _common(body: AskingBody) -> dict[str, Any]:
    return {
        "stream": bool(body.stream),
        "deadline": body.deadline,
        "lane": body.lane or "interactive",
        "priority": body.priority or 0,
        "cache_salt": body.cache_salt,
        "affinity": body.affinity,
        "mm_processor_kwargs": body.mm_processor_kwargs or {},
        "tenant": body.user or DEFAULT_TENANT,
    }


def _sampling(
    body: AskingBody, spec: PipelineSpec, modalities: tuple[str, ...] | None, **given: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    params = stage_params(spec, modalities, seed=body.seed, **given)
    return overridden(spec, params, body.sampling_params, body.sampling_params_list)


def _chat_modalities(body: ChatBody, spec: PipelineSpec) -> tuple[str, ...] | None:
    if body.modalities is not None:
        return tuple(dict.fromkeys(body.modalities))
    return ("text",) if "text" in spec.modalities else None


def _need(spec: PipelineSpec, modality: str) -> None:
    if modality not in spec.modalities:
        produced = ", ".join(spec.modalities)
        message = f"model {spec.name!r} does not produce {modality!r}; it produces {produced}"
        raise UnsupportedModality(message, param="model")


def _message(message: ChatMessage, where: str) -> Message:
    # Chat templates know no "developer": it is OpenAI's newer name of "system".
    role = "system" if message.role == "developer" else message.role
    if not isinstance(message.content, list):
        return Message(role=role, content=message.content or "")
    parts = (_part(content, f"{where}.content[{index}]") for index, content in enumerate(message.content))
    return Message(role=role, content=tuple(parts))


def _part(content: Content, where: str) -> Part:
    if isinstance(content, TextContent):
        return TextPart(text=content.text)
    if isinstance(content, RefusalContent):
        return TextPart(text=content.refusal)
    if isinstance(content, AudioContent):
        data = from_base64(content.input_audio.data, param=f"{where}.input_audio.data")
        return AudioPart(data=data, media_type=audio_type(content.input_audio.format))
    if isinstance(content, ImageContent):
        data, media_type = from_data_url(content.image_url.url, "image", param=f"{where}.image_url.url")
        return ImagePart(data=data, media_type=media_type)
    data, media_type = from_data_url(content.video_url.url, "video", param=f"{where}.video_url.url")
    return VideoPart(data=data, media_type=media_type)


def _single_turn(text: str, param: str) -> tuple[Message, ...]:
    if not text.strip():
        raise EmptyPrompt(param=param)
    return (Message(role="user", content=text),)


def _single_prompt(prompt: str | list[int] | list[str] | list[list[int]]) -> str | tuple[int, ...]:
    """The prompt out of the four shapes that OpenAI allows; a list must hold exactly one."""
    if isinstance(prompt, str):
        return prompt
    if not prompt:
        raise EmptyPrompt(param="prompt")
    first = prompt[0]
    if isinstance(first, int):
        return tuple(token for token in prompt if isinstance(token, int))
    if len(prompt) > 1:
        raise InvalidRequest("a request has one prompt; send a request for each", param="prompt")
    return first if isinstance(first, str) else tuple(first)


def _sides(size: str | None) -> dict[str, int]:
    if size is None or size == "auto":
        return {}
    width, height = size.split("x")
    return {"width": int(width), "height": int(height)}


def _steps_between_previews(body: ImageBody, spec: PipelineSpec) -> int | None:
    """As few previews as give the caller its partial images; None when it wants none."""
    if not body.stream or not body.partial_images:
        return None
    defaults = (stage.default_sampling_params.get("num_inference_steps") for stage in spec.stages)
    steps = body.num_inference_steps or next((known for known in defaults if isinstance(known, int)), 1)
    return max(1, steps // (body.partial_images + 1))
