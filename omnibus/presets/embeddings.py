"""Embeddings of the shipped pipelines: a vector of the states that an encoder's stage made. numpy only."""

from __future__ import annotations

import numpy as np

from omnibus.wire.envelope import TokenUsage
from omnibus.workers.engines.protocol import Finished, StageInput


def mean_embedding(stage_input: StageInput) -> Finished:
    """The mean of the states of all tokens, of length 1: `embedding` (H,) float32, from the only source; counts its tokens."""
    (made,) = stage_input.sources.values()
    states = np.asarray(made["last_hidden_state"], np.float32)
    mean: np.ndarray = states.mean(0)
    vector = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return Finished(outputs={"embedding": vector}, usage=TokenUsage(prompt_tokens=len(states)))
