"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal, NotRequired

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import Field
from typing_extensions import TypedDict

from omnibus.client.request_events import Output
from omnibus.errors import EmptyPrompt, InvalidRequest
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import Usage, finish_reason, transcript, usage, whole_answer
from omnibus.frontdoor.bodies import (
    AskingBody,
    StreamOptions,
    TextSampling,
    check_modality,
)
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.streaming import EventStream, TextStream
from omnibus.frontdoor.submitting import Head, submit
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import Request

_Tokens = Annotated[list[int], Field(fail_fast=True)]
router = APIRouter(route_class=BodyRoute)


class CompletionBody(AskingBody, TextSampling):
    """A prompt to continue: one text, or the token ids of one."""

    called: ClassVar[Mapping[str, str]] = {"messages": "prompt", "token_ids": "prompt"}
    prompt: (
        str | _Tokens | Annotated[list[str], Field(fail_fast=True)] | Annotated[list[_Tokens], Field(fail_fast=True)]
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream_options: StreamOptions | None = None


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: None
    finish_reason: str | None


class Completion(TypedDict):
    """A whole answer, or a piece of it in a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]


@router.post("/v1/completions", response_model=Completion, openapi_extra=RouteAccess.USER.stated)
async def create_completion(body: CompletionBody, http: HttpRequest, context: Context) -> Response:
    """Continue a prompt."""
    accepted = await submit(context, http, body, completion_request)
    if not body.stream:
        return await whole_answer(context, http, accepted, partial(completion, accepted.head))
    stream = CompletionStream(accepted.head, accepted.live_stage, body.stream_options)
    return EventStream(context, http, accepted, stream.encode)


def completion_request(body: CompletionBody, spec: PipelineSpec) -> Request:
    """A prompt to continue: only text is delivered. Raises RequestError naming the field."""
    check_modality(spec, "text")
    text = body.chosen() if body.max_tokens is None else {**body.chosen(), "max_tokens": body.max_tokens}
    return body.request(spec, ("text",), text=text, prompt=_single_prompt(body.prompt))


def completion(head: Head, outputs: Sequence[Output]) -> Completion:
    """The one text."""
    return {**_completion(head, transcript(outputs), finish_reason(outputs)), "usage": usage(outputs)}


class CompletionStream(TextStream):
    """A completion's chunks."""

    def piece(self, text: str | None, reason: str | None = None) -> Completion:
        chunk = _completion(self.head, text or "", reason)
        # A caller that asked for usage finds it in every chunk, None until the last.
        return {**chunk, "usage": None} if self.include_usage else chunk

    def totals(self, total: Usage) -> Completion:
        return {**self.piece(None), "choices": [], "usage": total}


def _completion(head: Head, text: str, reason: str | None) -> Completion:
    choice = CompletionChoice(index=0, text=text, logprobs=None, finish_reason=reason)
    return Completion(
        id=f"cmpl-{head.rid}", object="text_completion", created=head.created, model=head.model, choices=[choice]
    )


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
