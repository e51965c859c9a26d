"""Scores and rankings on real models: a tiny cross encoder under vLLM beside transformers, and the preset `minilm`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import transformers

from omnibus.errors import StageStartError
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.vllm.engine import VllmEngine
from tests.support.cross_encoder import make_cross_encoder
from tools.serving import Serving, serving

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(400),
    # vLLM and torch use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]
PIPELINE = """
name: judge
deadline: 200s
stages:
- stage_id: 0
  name: reader
  engine: vllm
  model: {model}
  final_output: true
  final_output_type: score
  slots: 8
  env: {{OMP_NUM_THREADS: "1", VLLM_CPU_OMP_THREADS_BIND: nobind, HF_HUB_OFFLINE: "1"}}
  engine_args: {{runner: pooling, max_model_len: 64}}
"""
QUERY = "red cat"
DOCUMENTS = ["the red cat", "an old dog", "a rose is red", "cats"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cross_encoder(tmp_path_factory.mktemp("judge") / "model")


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[Serving]:
    file = checkpoint.parent / "judge.yaml"
    file.write_text(PIPELINE.format(model=checkpoint))
    with serving(str(file), "--port", "0", "--nats-port", "0", state_dir=checkpoint.parent / "state") as running:
        yield running


def post(server: Serving, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=100.0)
    found: dict[str, Any] = answer.json()
    assert answer.status_code == status, found
    return found


def test_scores_are_those_of_transformers_when_a_cross_encoder_reads_pairs(server: Serving, checkpoint: Path) -> None:
    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    given = [tokenizer(QUERY, document, return_tensors="pt") for document in DOCUMENTS]
    with torch.no_grad():
        expected = [torch.sigmoid(model(**pair).logits).item() for pair in given]

    made = post(server, "/score", text_1=QUERY, text_2=DOCUMENTS)
    np.testing.assert_allclose([one["score"] for one in made["data"]], expected, atol=1e-4)
    assert np.ptp(expected) > 0.01
    assert made["usage"]["prompt_tokens"] == sum(pair.input_ids.shape[1] for pair in given)
    ranked = post(server, "/v2/rerank", query=QUERY, documents=DOCUMENTS, top_n=2)
    assert [one["index"] for one in ranked["results"]] == sorted(range(4), key=lambda at: -expected[at])[:2]
    refused = post(server, "/rerank", 400, query=QUERY, documents=["a" * 80])["error"]
    assert (refused["param"], refused["code"]) == ("documents", "context_length_exceeded")


async def test_a_model_without_a_score_is_refused_at_its_start(tmp_path: Path) -> None:
    several = make_cross_encoder(tmp_path, labels=3)
    stage = StageSpec(
        stage_id=0, name="reader", engine="vllm", model=str(several), final_output=True, final_output_type="score",
        engine_args={"runner": "pooling", "max_model_len": 64},
    )  # fmt: skip
    engine = VllmEngine(stage)
    with pytest.raises(StageStartError, match="scores no pairs"):
        await engine.start()
    await engine.close()


def test_documents_are_ranked_by_meaning_when_the_model_is_minilm(tmp_path: Path) -> None:
    documents = ["The stock market fell on Friday.", "A kitten rests on a rug.", "Rust is a programming language."]
    with serving("minilm", "--port", "0", "--nats-port", "0", state_dir=tmp_path) as running:
        made = post(running, "/rerank", query="A cat sits on the mat.", documents=documents)
        scored = post(running, "/score", text_1="A cat sits on the mat.", text_2=documents)
        vectors = post(running, "/v1/embeddings", model="minilm", input=["A cat sits on the mat.", *documents])
    assert made["results"][0]["index"] == 1
    query, *others = (np.asarray(one["embedding"], np.float32) for one in vectors["data"])
    expected = [torch.cosine_similarity(torch.tensor(query), torch.tensor(one), dim=0).item() for one in others]
    np.testing.assert_allclose([one["score"] for one in scored["data"]], expected, atol=1e-6)
    assert made["usage"]["total_tokens"] == vectors["usage"]["total_tokens"]
