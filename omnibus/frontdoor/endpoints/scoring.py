"""`POST /score` and `/rerank`, as vLLM serves them: how well texts match, by their embeddings or by a model that reads pairs.

Reranking has the shape of Jina's and Cohere's. A pipeline that delivers `score` is given each pair as a chat of two turns, of
the roles `query` and `document`; of one that delivers `embedding`, the cosine of the two is the score.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import BeforeValidator, Field
from typing_extensions import TypedDict

from omnibus.client.request_events import Output
from omnibus.errors import EmptyPrompt, EngineError, InvalidRequest, UnsupportedModality
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import Usage, json_response, timing_headers, usage
from omnibus.frontdoor.bodies import AskingBody
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.endpoints.text_embeddings import MAX_INPUTS, embedding_request, not_too_many, vector_of
from omnibus.frontdoor.submitting import Head
from omnibus.frontdoor.submitting_many import output_of, results_of_all
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.lazy_numpy import np
from omnibus.wire.request import Message, Request

SCORE, EMBEDDING = "score", "embedding"
_SMALLEST = 1e-8
"""Length by which a vector is divided at least, as torch's `cosine_similarity` does."""
_PAIRS = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
"""The names that vLLM has for the two sides."""
Texts = Annotated[
    str | Annotated[list[str], Field(max_length=MAX_INPUTS, fail_fast=True)], BeforeValidator(not_too_many)
]
router = APIRouter(route_class=BodyRoute)


class ScoringBody(AskingBody):
    """Fields of both; each text, or pair, becomes a request of its own."""

    stream: Literal[False] | None = None

    def sides(self) -> tuple[str, str]:
        """The fields of the two sides; raises InvalidRequest where they are not there."""
        raise NotImplementedError

    def texts(self, field: str) -> list[str]:
        """The texts of a side; raises EmptyPrompt naming the one that is empty."""
        given = getattr(self, field)
        texts = [given] if isinstance(given, str) else list(given)
        if not texts:
            raise EmptyPrompt(param=field)
        for number, text in enumerate(texts):
            if not text.strip():
                raise EmptyPrompt(param=field if isinstance(given, str) else f"{field}[{number}]")
        return texts

    def field_of(self, param: str) -> str:
        return self.sides()[1] if param in ("prompt", "messages") else super().field_of(param)


class ScoreBody(ScoringBody):
    """One text and others, or as many pairs as each side has texts."""

    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None

    def sides(self) -> tuple[str, str]:
        given = [name for name in dict.fromkeys(sum(_PAIRS, ())) if getattr(self, name) is not None]
        found = next((pair for pair in _PAIRS if set(pair) == set(given)), None)
        if found is None:
            choices = ", or ".join(" and ".join(pair) for pair in _PAIRS)
            raise InvalidRequest(f"give {choices}", param=given[-1] if given else "text_1")
        return found


class RerankBody(ScoringBody):
    """A query, and the documents that are put in order."""

    query: str
    documents: Texts
    top_n: Annotated[int, Field(ge=0)] | None = None
    """So many of the best; 0 and None: all."""
    return_documents: bool | None = None
    """False: without their texts."""

    def sides(self) -> tuple[str, str]:
        return ("query", "documents")


class Score(TypedDict):
    index: int
    object: Literal["score"]
    score: float


class ScoreList(TypedDict):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: Usage


class RankedText(TypedDict):
    text: str


class Ranked(TypedDict, total=False):
    index: int
    """The place of the document in the request."""
    document: RankedText
    relevance_score: float


class RankedUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class Ranking(TypedDict):
    """The documents, the best first."""

    id: str
    model: str
    results: list[Ranked]
    usage: RankedUsage


class Scored(TypedDict):
    head: Head
    scores: list[float]
    usage: Usage
    headers: dict[str, str]


@router.post("/score", response_model=ScoreList, openapi_extra=RouteAccess.USER.stated)
@router.post("/v1/score", response_model=ScoreList, openapi_extra=RouteAccess.USER.stated)
async def score(body: ScoreBody, http: HttpRequest, context: Context) -> Response:
    """Score pairs of texts."""
    found = await _scored(context, http, body)
    head = found["head"]
    answer = ScoreList(
        id=f"score-{head.rid}", object="list", created=head.created, model=head.model, usage=found["usage"],
        data=[Score(index=index, object="score", score=one) for index, one in enumerate(found["scores"])],
    )  # fmt: skip
    return await json_response(lambda: answer, headers=found["headers"])


@router.post("/rerank", response_model=Ranking, openapi_extra=RouteAccess.USER.stated)
@router.post("/v1/rerank", response_model=Ranking, openapi_extra=RouteAccess.USER.stated)
@router.post("/v2/rerank", response_model=Ranking, openapi_extra=RouteAccess.USER.stated)
async def rerank(body: RerankBody, http: HttpRequest, context: Context) -> Response:
    """Put documents in order of how well they match a query."""
    found = await _scored(context, http, body)
    head, scores, documents = found["head"], found["scores"], body.texts("documents")
    best = sorted(range(len(scores)), key=lambda index: scores[index], reverse=True)[: body.top_n or len(scores)]
    results = [Ranked(index=index, relevance_score=scores[index]) for index in best]
    for one in results if body.return_documents is not False else ():
        one["document"] = RankedText(text=documents[one["index"]])
    read = found["usage"]["prompt_tokens"]
    answer = Ranking(
        id=f"rerank-{head.rid}", model=head.model, results=results,
        usage=RankedUsage(prompt_tokens=read, total_tokens=read),
    )  # fmt: skip
    return await json_response(lambda: answer, sum(map(len, documents)), found["headers"])


async def _scored(context: FrontDoorContext, http: HttpRequest, body: ScoringBody) -> Scored:
    """The score of each pair; raises InvalidRequest where the sides do not fit."""
    first, second = body.sides()
    left, right = body.texts(first), body.texts(second)
    if len(left) not in (1, len(right)):
        raise InvalidRequest(
            f"{first} has {len(left)} entries and {second} {len(right)}: give one, or as many", param=first
        )
    modality = await _modality(context, body)
    of_pairs = modality == SCORE
    requests: list[Callable[[Any, PipelineSpec], Request]] = (
        [
            partial(_pair_request, query=query, document=one)
            for query, one in zip(_spread(left, right), right, strict=True)
        ]
        if of_pairs
        else [partial(embedding_request, given=text) for text in (*left, *right)]
    )
    accepted, results = await results_of_all(context, http, body, requests, modality=modality, field=second)
    outputs = [output_of(result, modality) for result in results]
    if of_pairs:
        scores = [_number(output) for output in outputs]
    else:
        vectors = [vector_of(output) for output in outputs]
        documents = vectors[len(left) :]
        scores = list(map(cosine, _spread(vectors[: len(left)], documents), documents))
    read = sum(usage([output])["prompt_tokens"] for output in outputs)
    return Scored(
        head=accepted.head, scores=scores, headers=timing_headers(results[0], accepted.served.spec),
        usage=Usage(prompt_tokens=read, completion_tokens=0, total_tokens=read),
    )  # fmt: skip


async def _modality(context: FrontDoorContext, body: ScoringBody) -> str:
    """The modality that scores are made of; raises UnsupportedModality for a pipeline that delivers neither."""
    if body.model is None:
        able = {one for served in await context.models.all() for one in served.spec.modalities}
        return SCORE if SCORE in able else EMBEDDING
    spec = (await context.models.find(body.model)).spec
    found = next((one for one in (SCORE, EMBEDDING) if one in spec.modalities), None)
    if found is None:
        produced = ", ".join(spec.modalities)
        message = f"model {body.model!r} produces neither score nor embedding, of which scores are made, but {produced}"
        raise UnsupportedModality(message, param="model")
    return found


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """The cosine of two vectors (H,) float32."""
    lengths = np.maximum(np.linalg.norm(one), _SMALLEST) * np.maximum(np.linalg.norm(other), _SMALLEST)
    return float(one @ other / lengths)


def _pair_request(body: ScoringBody, spec: PipelineSpec, *, query: str, document: str) -> Request:
    pair = (Message(role="query", content=query), Message(role="document", content=document))
    return body.request(spec, (SCORE,), messages=pair)


def _spread(left: Sequence[Any], right: Sequence[Any]) -> Sequence[Any]:
    """One for each of the other side."""
    return list(left) * len(right) if len(left) == 1 else left


def _number(output: Output) -> float:
    score = json.loads(output.items[0])
    if not isinstance(score, int | float):
        raise EngineError(f"the score of stage {output.stage_id} is no number")
    return float(score)
