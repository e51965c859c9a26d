"""A stage that makes a vector of a prompt: how often each of its first letters is in it, or of the token ids."""

from __future__ import annotations

import numpy as np

from omnibus.errors import EngineRejected
from omnibus.workers.engines.protocol import StageInput


def embed(stage_input: StageInput) -> np.ndarray:
    prompt = stage_input.request.prompt
    if prompt == "refuse":
        raise EngineRejected("not this one", param="prompt")
    if isinstance(prompt, tuple):
        return np.asarray(prompt, np.float32)
    return np.asarray([str(prompt).count(letter) for letter in "abc"], np.float32)
