"""`POST /tokenize` and `/detokenize`, as vLLM serves them: tokens of a prompt as the model of the first stage gets it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import Field
from typing_extensions import TypedDict

from omnibus.client.prompt_tokens import prompt_tokens
from omnibus.errors import InvalidRequest
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import json_response
from omnibus.frontdoor.bodies import Body, FileNamingBody, ModelName
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.chat_messages import MAX_MESSAGES, ChatMessage, content_field, files_in, turns
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.endpoints.answer_options import MAX_TOOLS
from omnibus.frontdoor.named_files import fetch_named
from omnibus.frontdoor.outbound.web_files import NamedFile
from omnibus.frontdoor.served import Served
from omnibus.frontdoor.stage_readiness import NotReady
from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.spec import StageSpec
from omnibus.registry.presence.replica_record import ReplicaStatus
from omnibus.wire.control import AskTokens, PromptTokens
from omnibus.wire.request import ChatOptions, Request

router = APIRouter(route_class=BodyRoute)


class TokensBody(Body):
    """The model whose tokenizer is meant."""

    called: ClassVar[Mapping[str, str]] = {}

    model: ModelName | None = None

    def field_of(self, param: str) -> str:
        return self.called.get(param) or content_field(param)


class TokenizeBody(TokensBody, FileNamingBody):
    """A text, or a chat, which the template of the model makes one. What is not given is as in a request."""

    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None

    def named_files(self) -> Iterable[NamedFile]:
        return files_in(self.messages or ())

    def question(self) -> AskTokens:
        """The question to a replica; raises InvalidRequest naming the field."""
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("give exactly one of prompt and messages", param="prompt")
        options = ChatOptions(
            tools=tuple(self.tools) if self.tools else None,
            chat_template=self.chat_template,
            chat_template_kwargs=self.chat_template_kwargs or None,
            add_generation_prompt=None if self.add_generation_prompt is not False else False,
            continue_final_message=self.continue_final_message or None,
        )
        if self.prompt is not None and options != ChatOptions():
            first = next(name for name in options.__struct_fields__ if getattr(options, name) is not None)
            raise InvalidRequest(f"{first} is an option of a chat: give messages", param=first)
        request = Request(
            prompt=self.prompt,
            messages=None if self.messages is None else turns(self.messages, self.fetched),
            chat=None if options == ChatOptions() else options,
            mm_processor_kwargs=self.mm_processor_kwargs or {},
        )
        return AskTokens(request=request, special=self.add_special_tokens, strings=bool(self.return_token_strs))


class DetokenizeBody(TokensBody):
    """Token ids."""

    called: ClassVar[Mapping[str, str]] = {"prompt": "tokens", "token_ids": "tokens"}
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=1 << 32)]], Field(fail_fast=True)]

    def question(self) -> AskTokens:
        return AskTokens(request=Request(prompt=tuple(self.tokens)))


class Tokenized(TypedDict):
    count: int
    max_model_len: int
    """Tokens that the model's context holds."""
    tokens: tuple[int, ...]
    token_strs: tuple[str, ...] | None


class Detokenized(TypedDict):
    prompt: str


@router.post("/tokenize", response_model=Tokenized, openapi_extra=RouteAccess.USER.stated)
@router.post("/v1/tokenize", response_model=Tokenized, openapi_extra=RouteAccess.USER.stated)
async def tokenize(body: TokenizeBody, http: HttpRequest, context: Context) -> Response:
    """Count the tokens of a prompt, and list them."""
    found = await _answer(context, body, http.state.tenant)
    ids = found.token_ids
    answer = Tokenized(count=len(ids), max_model_len=found.context, tokens=ids, token_strs=found.strings)
    return await json_response(lambda: answer, len(ids))


@router.post("/detokenize", response_model=Detokenized, openapi_extra=RouteAccess.USER.stated)
@router.post("/v1/detokenize", response_model=Detokenized, openapi_extra=RouteAccess.USER.stated)
async def detokenize(body: DetokenizeBody, context: Context) -> Response:
    """Make a text of tokens."""
    text = (await _answer(context, body)).text or "" if body.tokens else ""
    return await json_response(lambda: Detokenized(prompt=text), len(text))


async def _answer(
    context: FrontDoorContext, body: TokenizeBody | DetokenizeBody, tenant: str | None = None
) -> PromptTokens:
    """Raises NotReady where the stage has no replica up."""
    served = await context.models.find(body.model)
    stage = _reader(served)
    if isinstance(body, TokenizeBody):
        await fetch_named(context, tenant, body)
    question = await asyncio.to_thread(body.question)  # it decodes files
    able = [
        one
        for one in await context.replicas(served.spec)
        if one.stage_id == stage.stage_id and one.status is ReplicaStatus.UP
    ]
    if not able:
        raise NotReady(served.model, await context.missing_stages(served.spec, [stage.stage_id]))
    return await prompt_tokens(context.producer.connection, served.spec, able, question)


def _reader(served: Served) -> StageSpec:
    """The first stage with a tokenizer among those that read prompts; raises InvalidRequest where there is none."""
    readers = [stage for stage in served.spec.stages if not stage.input_sources]
    found = next((stage for stage in readers if engine_kind(stage.engine).has_tokenizer), None)
    if found is None:
        engines = ", ".join(dict.fromkeys(stage.engine for stage in readers))
        raise InvalidRequest(
            f"model {served.model!r} has no tokenizer to ask: prompts are read by {engines}, and only vllm tells tokens",
            param="model",
        )
    return found
