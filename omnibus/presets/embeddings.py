"""Embeddings of the shipped pipelines: a vector of the states that an encoder's stage made. numpy only."""

from __future__ import annotations

import numpy as np

from omnibus.workers.engines.protocol import StageInput


def mean_embedding(stage_input: StageInput) -> np.ndarray:
    """The mean of the states of all tokens, of length 1: (H,) float32, from the only source."""
    (made,) = stage_input.sources.values()
    mean: np.ndarray = np.asarray(made["last_hidden_state"], np.float32).mean(0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)
