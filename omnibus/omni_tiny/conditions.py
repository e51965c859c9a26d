"""Conditions of the dit: the thinker's hidden states over prompt and answer, as prompt embeddings.

Layers 0 (which things are named) and 2 (their relation), each RMS-normalised, side by side, plus a sinusoidal token position.
The last layer alone would only predict the next token. Training and serving build them with this one function.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LAYERS = (0, 2)
"""Layer 0 is the embedding, k the residual stream after k layers."""
HIDDEN = 128
CHANNELS = len(LAYERS) * HIDDEN
LENGTH = 32
"""Rows that conditions are padded to, so that requests batch; the grammar's longest prompt with its answer has 25."""
_EPSILON = 1e-6


class Conditions(NamedTuple):
    """Prompt embeddings (L, 256) float32 and their mask (L,) int64: 1 for a token, 0 for padding; L ≥ 32."""

    embeds: np.ndarray
    mask: np.ndarray


def conditions_of(hidden_states: np.ndarray, length: int = LENGTH) -> Conditions:
    """Build conditions from hidden states (T, 2, 128) of layers 0 and 2, padded to `length`, or T where that is longer."""
    if hidden_states.ndim != 3 or hidden_states.shape[1:] != (len(LAYERS), HIDDEN):
        raise ValueError(f"expected hidden states of shape (T, {len(LAYERS)}, {HIDDEN}), got {hidden_states.shape}")
    states = hidden_states.astype(np.float32)
    normed = states / np.sqrt(np.mean(states**2, axis=-1, keepdims=True) + _EPSILON)
    tokens = len(states)
    embeds = np.zeros((max(length, tokens), CHANNELS), dtype=np.float32)
    embeds[:tokens] = normed.reshape(tokens, CHANNELS) + positions(tokens)
    return Conditions(embeds, (np.arange(len(embeds)) < tokens).astype(np.int64))


def positions(tokens: int) -> np.ndarray:
    """Sinusoidal positions (Vaswani et al. 2017, section 3.5) with wavelengths from 2π to 2000π; shape (tokens, 256)."""
    rates = 1000.0 ** (-np.arange(CHANNELS // 2) / (CHANNELS // 2))
    angles = np.outer(np.arange(tokens), rates)
    both = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return np.asarray(both, dtype=np.float32)
