"""`POST /v1/embeddings`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from omnibus.client.request_events import Output
from omnibus.errors import EmptyPrompt, EngineError, InvalidRequest
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import json_response, size_of, timing_headers
from omnibus.frontdoor.bodies import AskingBody, TokenIds, check_modality
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.data_urls import to_base64
from omnibus.frontdoor.submitting_many import output_of, results_of_all
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.lazy_numpy import np
from omnibus.wire.request import Request

MAX_INPUTS = 256
MODALITY = "embedding"
_Texts = Annotated[list[str], Field(max_length=MAX_INPUTS, fail_fast=True)]


def not_too_many(given: object) -> object:
    """A shape that is too long is none of the union, whose error would be that of another shape."""
    if isinstance(given, list) and len(given) > MAX_INPUTS and not isinstance(given[0], int):
        raise PydanticCustomError("too_many", f"has {len(given)} entries, and may have {MAX_INPUTS}")
    return given


router = APIRouter(route_class=BodyRoute)


class EmbeddingBody(AskingBody):
    """One text or several, or the token ids of one or several; each becomes a request of its own."""

    called: ClassVar[Mapping[str, str]] = {"prompt": "input", "messages": "input", "token_ids": "input"}
    input: Annotated[
        str | TokenIds | _Texts | Annotated[list[TokenIds], Field(max_length=MAX_INPUTS, fail_fast=True)],
        BeforeValidator(not_too_many),
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
    requests = [partial(embedding_request, given=one) for one in _inputs(body.input)]
    first, results = await results_of_all(context, http, body, requests, modality=MODALITY, field="input")
    outputs = [output_of(result, MODALITY) for result in results]
    return await json_response(
        lambda: _list(body, first.served.model, outputs),
        size_of(outputs),
        timing_headers(results[0], first.served.spec),
    )


def vector_of(output: Output) -> np.ndarray:
    """The numbers of an embedding, (H,) float32; raises EngineError for one that is no vector."""
    vector = np.asarray(json.loads(output.items[0]), "<f4")
    if vector.ndim != 1:
        raise EngineError(f"the embedding of stage {output.stage_id} is no vector, but of shape {vector.shape}")
    return vector


def _list(body: EmbeddingBody, model: str, outputs: Sequence[Output]) -> EmbeddingList:
    data = [Embedding(object="embedding", index=at, embedding=_shown(body, one)) for at, one in enumerate(outputs)]
    read = sum(output.usage.prompt_tokens for output in outputs)
    return EmbeddingList(
        object="list", model=model, data=data, usage=EmbeddingUsage(prompt_tokens=read, total_tokens=read)
    )


def embedding_request(body: AskingBody, spec: PipelineSpec, *, given: str | tuple[int, ...]) -> Request:
    """A text that is embedded; raises RequestError naming the field."""
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


def _shown(body: EmbeddingBody, output: Output) -> list[float] | str:
    """The vector in the form that was asked for; raises InvalidRequest for more dimensions than it has."""
    vector = vector_of(output)
    if body.dimensions is not None:
        if body.dimensions > vector.size:
            raise InvalidRequest(f"the model has {vector.size} dimensions", param="dimensions")
        vector = vector[: body.dimensions]
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return to_base64(vector.tobytes()) if body.encoding_format == "base64" else vector.tolist()
