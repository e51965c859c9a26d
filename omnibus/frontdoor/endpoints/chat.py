"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import Field

from omnibus.errors import InvalidRequest
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import whole_answer
from omnibus.frontdoor.bodies import MAX_STAGES, AskingBody, Body, StreamOptions, TextSampling, Voice, voice_name
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.chat_messages import MAX_MESSAGES, ChatMessage, content_field, files_in, turns
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.endpoints.answer_options import ChatFields
from omnibus.frontdoor.endpoints.chat_answers import chat_completion
from omnibus.frontdoor.endpoints.chat_shapes import ChatCompletion
from omnibus.frontdoor.endpoints.chat_stream import ChatStream
from omnibus.frontdoor.openapi_document import EVENTS, answers_with
from omnibus.frontdoor.outbound.web_files import NamedFile
from omnibus.frontdoor.streaming import EventStream
from omnibus.frontdoor.submitting import submit
from omnibus.frontdoor.voices import Speaking
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.chat_checks import STRUCTURED
from omnibus.wire.request import Request

AudioFormat = Literal["wav", "pcm16", "pcm", "flac", "mp3", "opus", "aac"]
router = APIRouter(route_class=BodyRoute)


class AudioOptions(Body):
    format: AudioFormat = "wav"
    voice: Voice | None = None

    @property
    def speaking(self) -> Speaking:
        return Speaking(voice=voice_name(self.voice))


class ChatBody(AskingBody, TextSampling, ChatFields):
    """A chat."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    modalities: Annotated[list[str], Field(max_length=MAX_STAGES, fail_fast=True)] | None = None
    """None: text where the pipeline has it, else all that it has."""
    audio: AudioOptions | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream_options: StreamOptions | None = None

    def named_files(self) -> Iterable[NamedFile]:
        return files_in(self.messages)

    def field_of(self, param: str) -> str:
        if param == "max_tokens" and self.max_completion_tokens is not None:
            return "max_completion_tokens"
        if param == STRUCTURED:
            return self.structured_field()
        if param == "logprobs" and self.top_logprobs is not None:
            return "top_logprobs"
        if param == "voice":
            return "audio.voice"
        return super().field_of("messages" if param == "prompt" else content_field(param, self.messages))


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses=answers_with(EVENTS),
    openapi_extra=RouteAccess.USER.stated,
)
async def create_chat_completion(body: ChatBody, http: HttpRequest, context: Context) -> Response:
    """Answer a chat with text, images and sound."""
    accepted = await submit(context, http, body, chat_request)
    audio = body.audio.format if body.audio is not None else "wav"
    if not body.stream:
        return await whole_answer(context, http, accepted, partial(chat_completion, accepted.head), audio=audio)
    stream = ChatStream(accepted.head, accepted.live_stage, body.stream_options, audio)
    return EventStream(context, http, accepted, stream.encode)


def chat_request(body: ChatBody, spec: PipelineSpec, image: Mapping[str, Any] | None = None) -> Request:
    """A chat, its media decoded, with these parameters of images; raises RequestError naming the field."""
    modalities = _modalities(body, spec)
    if body.audio is not None and "audio" not in (spec.default_modalities if modalities is None else modalities):
        raise InvalidRequest("no audio is asked for: name it in modalities, or leave audio out", param="audio")
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    text = {**body.chosen(), **body.answered(), **({} if limit is None else {"max_tokens": limit})}
    speaking = None if body.audio is None else body.audio.speaking
    return body.request(
        spec,
        modalities,
        text=text,
        speaking=speaking,
        image=image,
        messages=turns(body.messages, body.fetched),
        chat=body.options(),
    )


def _modalities(body: ChatBody, spec: PipelineSpec) -> tuple[str, ...] | None:
    if body.modalities is not None:
        return tuple(dict.fromkeys(body.modalities))
    return ("text",) if "text" in spec.modalities else None
