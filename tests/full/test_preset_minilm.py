"""The preset `minilm` on its real weights: its embeddings are those that transformers computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from omnibus.client.omni import Omni
from omnibus.pipeline.loading import load_pipeline
from omnibus.workers.engines.checkpoints import resolve_model

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    # torch and transformers use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TEXTS = ["A cat sits on the mat.", "A kitten rests on a rug.", "The stock market fell on Friday.", "Ünïcödé, 日本!"]


def test_embeddings_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMNIBUS_CACHE_DIR", str(tmp_path))
    with Omni("minilm") as omni:
        results = omni.generate(TEXTS, use_tqdm=False)
    for result in results:
        result.raise_for_failure()
    usages = [result.output("embedding").usage for result in results]
    made = np.array([json.loads(bytes(result.output("embedding").items[0])) for result in results])

    torch.set_num_threads(1)
    folder = resolve_model(load_pipeline("minilm").stages[0].model)
    tokenizer, model = (
        transformers.AutoTokenizer.from_pretrained(folder),
        transformers.AutoModel.from_pretrained(folder),
    )
    for text, vector in zip(TEXTS, made, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
        np.testing.assert_allclose(vector, expected, atol=2e-5)
    assert [one.prompt_tokens for one in usages] == [len(tokenizer(text).input_ids) for text in TEXTS]
    near, far = made[0] @ made[1], made[0] @ made[2]
    assert near > far + 0.3
