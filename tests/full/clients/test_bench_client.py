"""vLLM's bench client against a front door: chats and completions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.peers import vllm_client
from omnibus.pipeline.loading import load_pipeline
from omnibus.workers.engines.checkpoints import resolve_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
SIZES = ("--random-input-len", "32", "--random-output-len", "8", "--num-prompts", "4", "--max-concurrency", "2")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[vllm_client.VllmClient]:
    with vllm_client.running(Path(tmp_path_factory.mktemp("client"))) as running:
        yield running


@pytest.mark.parametrize(
    ("backend", "endpoint", "model"),
    [
        ("openai-chat", "/chat/completions", "smollm2"),
        ("openai", "/completions", "smollm2"),
        ("openai", "/completions", "omni-tiny"),
    ],
)
def test_every_request_is_answered(
    client: vllm_client.VllmClient, url: str, backend: str, endpoint: str, model: str
) -> None:
    result = client.run(
        "--backend", backend, "--base-url", url.removesuffix("/v1"), "--endpoint", f"/v1{endpoint}", "--model", model,
        "--tokenizer", resolve_model(load_pipeline(model).stages[0].model), "--dataset-name", "random", *SIZES, "--disable-tqdm",
    )  # fmt: skip
    assert result["completed"] == 4
