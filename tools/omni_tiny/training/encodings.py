"""The trained thinker's encodings: the conditions that the dit is trained on, the same as in serving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from omnibus.omni_tiny.conditions import LAYERS, conditions_of
from tools.omni_tiny.grammar import Scene
from tools.omni_tiny.tokens import PAD, canonical_ids
from tools.omni_tiny.training.thinker import padded, prompt_ids, spoken


class Encoder:
    """A trained thinker that encodes instead of answering."""

    def __init__(self, checkpoint: Path) -> None:
        self.tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(checkpoint)
        self.model = Qwen3ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval().requires_grad_(False)

    def empty_prompt(self) -> np.ndarray:
        """Hidden states (2, 2, 128) of the chat template around nothing, float32."""
        return self._states([prompt_ids(self.tokenizer, "")])[0]

    def conditions(self, scenes: list[Scene], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Conditions (N, 32, 256) fp16 and masks (N, 32) of a new sentence for each scene.

        Serving sees prompt and answer without the last generated token, which is the end token: the same tokens as here.
        """
        rows = [prompt_ids(self.tokenizer, spoken(scene, rng)) + canonical_ids(scene.symbols)[:-1] for scene in scenes]
        built = [conditions_of(states) for at in range(0, len(rows), 64) for states in self._states(rows[at : at + 64])]
        embeds = torch.stack([torch.from_numpy(one.embeds).half() for one in built])
        return embeds, torch.stack([torch.from_numpy(one.mask) for one in built])

    def _states(self, rows: list[list[int]]) -> list[np.ndarray]:
        """Hidden states (T, 2, 128) of each row of tokens."""
        ids, _ = padded([(row, []) for row in rows])
        hidden = self.model.model(
            input_ids=ids, attention_mask=(ids != PAD).long(), output_hidden_states=True
        ).hidden_states
        stacked: np.ndarray = torch.stack([hidden[layer] for layer in LAYERS], dim=2).numpy()
        return [states[: len(row)] for states, row in zip(stacked, rows, strict=True)]
