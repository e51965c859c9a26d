"""Scores and rankings of texts over HTTP: by embeddings, and by a stage that reads pairs. On real models: tests/full."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from omnibus.broker.connection import Connection
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from tests.support.front import Front, front, omni_sim

pytestmark = pytest.mark.integration
RERANK = ("/rerank", "/v1/rerank", "/v2/rerank")


def spec_of(name: str, function: str, modality: str, **more: Any) -> PipelineSpec:
    stage = StageSpec(
        stage_id=0, name="scorer", engine="python", model=f"tests.support.{function}", slots=4,
        final_output=True, final_output_type=modality,
    )  # fmt: skip
    return PipelineSpec(name=name, deadline=60.0, stages=(stage,), **more)


@pytest_asyncio.fixture
async def pairs(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, spec_of(pipeline, "pair_stage:score", "score")) as made:
        yield made


@pytest_asyncio.fixture
async def vectors(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, spec_of(pipeline, "embedding_stage:embed", "embedding")) as made:
        yield made


async def post(door: Front, path: str, **body: Any) -> dict[str, Any]:
    answer = await door.http.post(path, json={"model": door.spec.name, **body})
    found: dict[str, Any] = answer.json()
    assert answer.status_code == 200, found
    return found


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
async def test_one_text_is_scored_with_each_of_many_by_their_embeddings(vectors: Front, path: str) -> None:
    for first, second in (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")):
        made = await post(vectors, path, **{first: "ab", second: ["ab", "aab", "c"]})
        assert [one["index"] for one in made["data"]] == [0, 1, 2]
        assert [one["score"] for one in made["data"]] == pytest.approx([1.0, 3 / (2**0.5 * 5**0.5), 0.0], abs=1e-6)
        assert (made["object"], made["model"], made["data"][0]["object"]) == ("list", vectors.spec.name, "score")
        assert made["id"].startswith("score-")


async def test_as_many_texts_are_scored_in_pairs(pairs: Front) -> None:
    made = await post(pairs, "/score", text_1=["red cat", "old dog"], text_2=["a red rose", "an old dog"])
    assert [one["score"] for one in made["data"]] == [0.5, 1.0]
    assert made["usage"] == {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}


@pytest.mark.parametrize("path", RERANK)
async def test_documents_come_back_the_best_first(pairs: Front, path: str) -> None:
    documents = ["a red rose", "nothing", "the red cat"]
    made = await post(pairs, path, query="red cat", documents=documents)
    assert [(one["index"], one["relevance_score"]) for one in made["results"]] == [(2, 1.0), (0, 0.5), (1, 0.0)]
    assert [one["document"]["text"] for one in made["results"]] == [documents[index] for index in (2, 0, 1)]
    assert made["usage"]["total_tokens"] == 2 * 3 + 3 + 1 + 3
    few = await post(pairs, path, query="red cat", documents=documents, top_n=1, return_documents=False)
    assert few["results"] == [{"index": 2, "relevance_score": 1.0}]


async def test_documents_are_ranked_by_embeddings_where_no_model_is_named(vectors: Front) -> None:
    answer = await vectors.http.post("/rerank", json={"query": "a", "documents": ["b", "ab", "a"]})
    assert [one["index"] for one in answer.json()["results"]] == [2, 1, 0]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/score", {"text_1": "a"}, "text_1"),
        ("/score", {"text_1": "a", "documents": "b"}, "documents"),
        ("/score", {}, "text_1"),
        ("/score", {"text_1": ["a", "b"], "text_2": "c"}, "text_1"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "text_1"),
        ("/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/score", {"text_1": "a", "text_2": ["b", " "]}, "text_2[1]"),
        ("/score", {"text_1": "a", "text_2": ["b"] * 257}, "text_2"),
        ("/score", {"text_1": "a", "text_2": {"content": []}}, "text_2"),
        ("/score", {"text_1": "a", "text_2": "b", "truncate_prompt_tokens": 4}, "truncate_prompt_tokens"),
        ("/rerank", {"query": "a", "documents": ["b", "refuse"]}, "documents"),
        ("/rerank", {"query": "", "documents": ["b"]}, "query"),
        ("/rerank", {"query": "a", "documents": "b", "top_n": -1}, "top_n"),
        ("/rerank", {"query": "a", "documents": "b", "temperature": 1.0}, "temperature"),
        ("/rerank", {"query": "a"}, "documents"),
    ],
)
async def test_what_cannot_be_scored_is_refused_by_name(
    pairs: Front, path: str, body: dict[str, Any], param: str
) -> None:
    answer = await pairs.http.post(path, json={"model": pairs.spec.name, **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_document_that_is_too_large_is_refused(connection: Connection, pipeline: str) -> None:
    spec = spec_of(pipeline, "pair_stage:score", "score", max_prompt_bytes=100)
    async with front(connection, spec) as door:
        answer = await door.http.post("/rerank", json={"query": "a", "documents": ["b", "c " * 50]})
        assert (answer.status_code, answer.json()["error"]["param"]) == (413, "documents")


async def test_more_documents_than_may_be_open_are_refused(connection: Connection, pipeline: str) -> None:
    spec = spec_of(pipeline, "pair_stage:score", "score", max_open_requests=8)
    async with front(connection, spec) as door:
        answer = await door.http.post("/rerank", json={"query": "a", "documents": ["b"] * 9})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "documents")


async def test_a_pipeline_that_makes_neither_vectors_nor_scores_is_refused(
    connection: Connection, pipeline: str
) -> None:
    async with front(connection, omni_sim(pipeline), workers=False) as door:
        answer = await door.http.post("/rerank", json={"model": pipeline, "query": "a", "documents": ["b"]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_modality")
