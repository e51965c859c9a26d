"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NotRequired

import msgspec
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import Field
from typing_extensions import TypedDict

from omnibus.client.request_events import Output
from omnibus.errors import EmptyPrompt, InvalidRequest
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import Usage, known_reason, usage, whole_answer
from omnibus.frontdoor.bodies import (
    Answer,
    AskingBody,
    StreamOptions,
    TextSampling,
    TokenIds,
    check_modality,
)
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.endpoints.answer_options import StructuredText
from omnibus.frontdoor.endpoints.completion_logprobs import CompletionLogprobs, completion_logprobs
from omnibus.frontdoor.openapi_document import EVENTS, answers_with
from omnibus.frontdoor.streaming import EventStream, Frames, TextStream, frame, sliced
from omnibus.frontdoor.submitting import Head, submit
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.chat_checks import STRUCTURED
from omnibus.wire.envelope import StageTiming
from omnibus.wire.fields import LOGPROBS, PROMPT_LOGPROBS, TEXT, choice_of, logprobs_in
from omnibus.wire.request import Request

router = APIRouter(route_class=BodyRoute)


class CompletionBody(AskingBody, TextSampling, StructuredText):
    """A prompt to continue: one text, or the token ids of one."""

    called: ClassVar[Mapping[str, str]] = {"messages": "prompt", "token_ids": "prompt"}
    prompt: (
        str | TokenIds | Annotated[list[str], Field(fail_fast=True)] | Annotated[list[TokenIds], Field(fail_fast=True)]
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    """How many of the likeliest tokens come beside each."""
    echo: bool | None = None
    """The text begins with the prompt."""

    def field_of(self, param: str) -> str:
        return super().field_of(self.structured_field() if param == STRUCTURED else param)


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class Completion(TypedDict):
    """A whole answer, or a piece of it in a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]
    prompt_logprobs: NotRequired[object]


@router.post(
    "/v1/completions", response_model=Completion, responses=answers_with(EVENTS), openapi_extra=RouteAccess.USER.stated
)
async def create_completion(body: CompletionBody, http: HttpRequest, context: Context) -> Response:
    """Continue a prompt."""
    accepted = await submit(context, http, body, completion_request)
    if not body.stream:
        return await whole_answer(context, http, accepted, lambda outputs, _: completion(accepted.head, outputs))
    stream = CompletionStream(accepted.head, accepted.live_stage, body.stream_options)
    return EventStream(context, http, accepted, stream.encode)


def completion_request(body: CompletionBody, spec: PipelineSpec) -> Request:
    """A prompt to continue: only text is delivered. Raises RequestError naming the field."""
    check_modality(spec, "text")
    given = {"max_tokens": body.max_tokens, "logprobs": body.logprobs, "echo": body.echo or None}
    text = {**body.chosen(), **body.structured(), **{name: one for name, one in given.items() if one is not None}}
    return body.request(spec, ("text",), text=text, prompt=_single_prompt(body.prompt))


def completion(head: Head, outputs: Sequence[Output]) -> Completion:
    """The texts."""
    text = next((output for output in outputs if output.modality == "text"), None)
    choices = [
        CompletionChoice(
            index=one.index, text=one.text, finish_reason=known_reason(one.finish_reason),
            logprobs=None if one.logprobs is None else completion_logprobs(one.logprobs),
        )
        for one in (text.choices if text is not None else ())
    ]  # fmt: skip
    answer = Completion(**{**_completion(head, choices), "usage": usage(outputs)})
    prompt = text.fields.get(PROMPT_LOGPROBS) if text is not None else None
    return answer if prompt is None else {**answer, "prompt_logprobs": msgspec.Raw(prompt.encode())}


class CompletionStream(TextStream):
    """A completion's chunks."""

    def __init__(self, *given: Any) -> None:
        self._logprobs: dict[int, list[Mapping[str, Any]]] = {}
        """Those of each choice that wait for the chunk with their text."""
        self._offsets: dict[int, int] = {}
        super().__init__(*given)

    def text(self, text: str) -> Frames:
        return [frame(self.piece(text))] if self._logprobs.get(0) else super().text(text)

    def field(self, name: str, text: str) -> Iterator[Completion]:
        """A piece of a further choice; probabilities wait for the text that they belong to."""
        index, own = choice_of(name)
        if own == LOGPROBS:
            self._logprobs.setdefault(index, []).extend(logprobs_in(text))
        elif own == TEXT:
            yield from (self.piece(piece, index=index) for piece in sliced(text))

    def closing(self, outputs: Sequence[Output], timings: Sequence[StageTiming] = ()) -> list[Answer]:
        """The last chunks: why each choice ended, and the tokens when they were asked for."""
        text = next((output for output in outputs if output.modality == "text"), None)
        others = text.choices[1:] if text is not None else ()
        first, *totals = super().closing(outputs, timings)
        return [first, *(self.piece(None, known_reason(one.finish_reason), one.index) for one in others), *totals]

    def piece(self, text: str | None, reason: str | None = None, index: int = 0) -> Completion:
        entries = self._logprobs.pop(index, None)
        logprobs = completion_logprobs(entries, self._offsets.get(index, 0)) if entries else None
        if logprobs is not None:
            self._offsets[index] = logprobs["text_offset"][-1] + len(logprobs["tokens"][-1])
        choice = CompletionChoice(index=index, text=text or "", logprobs=logprobs, finish_reason=reason)
        chunk = _completion(self.head, [choice])
        # A caller that asked for usage finds it in every chunk, None until the last.
        return {**chunk, "usage": self.so_far} if self.include_usage else chunk

    def totals(self, total: Usage) -> Completion:
        return {**self.piece(None), "choices": [], "usage": total}


def _completion(head: Head, choices: list[CompletionChoice]) -> Completion:
    return Completion(
        id=f"cmpl-{head.rid}", object="text_completion", created=head.created, model=head.model, choices=choices
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
