"""`POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal, TypeVar

import numpy as np
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from omnibus.client.request_events import Output
from omnibus.errors import EmptyPrompt, EngineError, InvalidRequest, OmnibusError
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import json_response, size_of, timing_headers
from omnibus.frontdoor.bodies import AskingBody, check_modality
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.data_urls import to_base64
from omnibus.frontdoor.submitting import Accepted, abandon, result_of, submit
from omnibus.ledger.overload import most_at_once
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import Request

MAX_INPUTS = 256
AT_A_TIME = 16
"""Requests that are submitted, or cancelled, at the same time."""
MODALITY = "embedding"
T = TypeVar("T")
_Tokens = Annotated[list[int], Field(fail_fast=True)]
_Texts = Annotated[list[str], Field(max_length=MAX_INPUTS, fail_fast=True)]


def _not_too_many(given: object) -> object:
    """A shape that is too long is none of the union, whose error would be that of another shape."""
    if isinstance(given, list) and len(given) > MAX_INPUTS and not isinstance(given[0], int):
        raise PydanticCustomError("too_many", f"has {len(given)} entries, and may have {MAX_INPUTS}")
    return given


router = APIRouter(route_class=BodyRoute)


class EmbeddingBody(AskingBody):
    """One text or several, or the token ids of one or several; each becomes a request of its own."""

    called: ClassVar[Mapping[str, str]] = {"prompt": "input", "messages": "input", "token_ids": "input"}
    input: Annotated[
        str | _Tokens | _Texts | Annotated[list[_Tokens], Field(max_length=MAX_INPUTS, fail_fast=True)],
        BeforeValidator(_not_too_many),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """The first so many numbers, brought to length 1 again; for models that were trained for it."""
    stream: Literal[False] | None = None


class Embedding(TypedDict):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """The numbers, or base64 of them as little-endian float32."""


class EmbeddingUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(TypedDict):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


@router.post("/v1/embeddings", response_model=EmbeddingList, openapi_extra=RouteAccess.USER.stated)
async def create_embeddings(body: EmbeddingBody, http: HttpRequest, context: Context) -> Response:
    """Turn texts into vectors: several are as many requests, which wait in the queue like any others."""
    inputs = _inputs(body.input)
    most = most_at_once((await context.models.find(body.model, modality=MODALITY)).spec)
    if len(inputs) > most:
        message = f"has {len(inputs)} entries, each a request, and the pipeline has {most} open at once: send fewer"
        raise InvalidRequest(f"input {message}", param="input")
    accepted = await _submitted(context, http, body, inputs)
    try:
        results = await asyncio.gather(*(result_of(context, http, one) for one in accepted))
    except OmnibusError:
        await _all(accepted, partial(abandon, context))
        raise
    outputs = [_embedding(result.outputs) for result in results]
    model = accepted[0].head.model
    return await json_response(
        lambda: _list(body, model, outputs), size_of(outputs), timing_headers(results[0], accepted[0].served.spec)
    )


async def _submitted(
    context: FrontDoorContext, http: HttpRequest, body: EmbeddingBody, inputs: Sequence[str | tuple[int, ...]]
) -> list[Accepted]:
    """The requests, in the order of their inputs; raises the error of the first that is refused.

    The others are cancelled then, unless they have an idempotency key.
    """
    accepted, refusals = dict[int, Accepted](), list[OmnibusError]()

    async def one(number: int) -> None:
        if refusals:
            return
        request_of = partial(_request, given=inputs[number])
        try:
            accepted[number] = await submit(context, http, body, request_of, modality=MODALITY, part=number)
        except OmnibusError as error:
            refusals.append(error)

    await _all(range(len(inputs)), one)
    if refusals:
        await _all(accepted.values(), partial(abandon, context))
        raise refusals[0]
    return [accepted[number] for number in range(len(inputs))]


async def _all(given: Iterable[T], act: Callable[[T], Awaitable[None]]) -> None:
    """Do the same with each, some at a time."""
    free = asyncio.Semaphore(AT_A_TIME)

    async def one(value: T) -> None:
        async with free:
            await act(value)

    await asyncio.gather(*map(one, given))


def _list(body: EmbeddingBody, model: str, outputs: Sequence[Output]) -> EmbeddingList:
    data = [Embedding(object="embedding", index=at, embedding=_shown(body, one)) for at, one in enumerate(outputs)]
    read = sum(output.usage.prompt_tokens for output in outputs)
    return EmbeddingList(
        object="list", model=model, data=data, usage=EmbeddingUsage(prompt_tokens=read, total_tokens=read)
    )


def _request(body: EmbeddingBody, spec: PipelineSpec, *, given: str | tuple[int, ...]) -> Request:
    check_modality(spec, MODALITY)
    return body.request(spec, (MODALITY,), prompt=given)


def _inputs(given: str | Sequence[str | int | Sequence[int]]) -> list[str | tuple[int, ...]]:
    """The inputs out of the four shapes that OpenAI allows."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise EmptyPrompt(param="input")
    if isinstance(given[0], int):
        return [tuple(token for token in given if isinstance(token, int))]
    return [one if isinstance(one, str) else tuple(one) for one in given if not isinstance(one, int)]


def _embedding(outputs: Sequence[Output]) -> Output:
    found = next((output for output in outputs if output.modality == MODALITY and output.items), None)
    if found is None:
        raise EngineError("the pipeline delivered no embedding")
    return found


def _shown(body: EmbeddingBody, output: Output) -> list[float] | str:
    """The vector in the form that was asked for; raises InvalidRequest for more dimensions than it has."""
    vector = np.asarray(json.loads(output.items[0]), "<f4")
    if vector.ndim != 1:
        raise EngineError(f"the embedding of stage {output.stage_id} is no vector, but of shape {vector.shape}")
    if body.dimensions is not None:
        if body.dimensions > vector.size:
            raise InvalidRequest(f"the model has {vector.size} dimensions", param="dimensions")
        vector = vector[: body.dimensions]
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return to_base64(vector.tobytes()) if body.encoding_format == "base64" else vector.tolist()
