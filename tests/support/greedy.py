"""Greedy decoding by transformers alone: what an engine's tokens are compared with."""

from __future__ import annotations

import torch
import transformers


def greedy_ids(model: transformers.PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """The `count` likeliest tokens after a prompt, one after the other."""
    ids = torch.tensor([prompt])
    for _ in range(count):
        with torch.no_grad():
            following = model(ids).logits[0, -1].argmax()
        ids = torch.cat([ids, following.reshape(1, 1)], dim=1)
    return ids[0, len(prompt) :].tolist()
