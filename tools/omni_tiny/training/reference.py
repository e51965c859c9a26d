"""The whole model without any serving: plain transformers and diffusers answer a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from transformers import AutoModel, AutoTokenizer, Qwen3ForCausalLM
from transformers.utils import logging

from omnibus.omni_tiny import vocabulary
from omnibus.omni_tiny.conditions import LAYERS, conditions_of
from omnibus.omni_tiny.processors import EMPTY_PROMPT_FILE


class Reference:
    """omni-tiny from a folder of checkpoints."""

    def __init__(self, checkpoints: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoints / "thinker")
        self.thinker = Qwen3ForCausalLM.from_pretrained(checkpoints / "thinker", dtype=torch.float32)
        self.talker = Qwen3ForCausalLM.from_pretrained(checkpoints / "talker", dtype=torch.float32)
        no_text = {"tokenizer": None, "text_encoder": None}  # the thinker is the text encoder
        self.dit = DiffusionPipeline.from_pretrained(checkpoints / "dit", dtype=torch.float32, **no_text)
        self.dit.set_progress_bar_config(disable=True)
        self.empty = np.load(checkpoints / "dit" / EMPTY_PROMPT_FILE, allow_pickle=False)
        logging.set_verbosity_error()  # the encoder that is not shipped is reported as missing
        self.codec = AutoModel.from_pretrained(checkpoints / "code2wav", dtype=torch.float32)
        for model in (self.thinker, self.talker, self.codec):
            model.requires_grad_(False)

    def think(self, sentence: str) -> tuple[str, list[int], np.ndarray]:
        """Answer text, generated token ids, hidden states (T, 2, 128) with T = prompt + generated - 1."""
        chat = [{"role": "user", "content": sentence}]
        prompt = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        tokens = self.thinker.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16)
        hidden = self.thinker.model(input_ids=tokens[:, :-1], output_hidden_states=True).hidden_states
        states = torch.stack([hidden[layer][0] for layer in LAYERS], dim=1).numpy()
        generated = tokens[0, prompt.shape[1] :].tolist()
        return self.tokenizer.decode(generated, skip_special_tokens=True), generated, states

    def draw(
        self, states: Sequence[np.ndarray], seeds: Sequence[int], negative: np.ndarray | None = None, **sampling: Any
    ) -> np.ndarray:
        """Pictures (B, 64, 64, 3) uint8 for the thinker's hidden states, one seed each; `sampling` as in the pipeline file.

        `negative` are the states of the negative prompt, instead of those of the empty one.
        """
        asked = [conditions_of(one) for one in states]
        against = conditions_of(self.empty if negative is None else negative, len(asked[0].mask))
        pictures = self.dit(
            prompt=None,
            negative_prompt=None,
            prompt_embeds=torch.from_numpy(np.stack([one.embeds for one in asked])),
            prompt_attention_mask=torch.from_numpy(np.stack([one.mask for one in asked])),
            negative_prompt_embeds=torch.from_numpy(np.stack([against.embeds] * len(asked))),
            negative_prompt_attention_mask=torch.from_numpy(np.stack([against.mask] * len(asked))),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            use_resolution_binning=False,
            output_type="np",
            **sampling,
        ).images
        return np.asarray(np.rint(np.asarray(pictures) * 255), dtype=np.uint8)

    def speak(self, token_ids: Sequence[int]) -> np.ndarray:
        """The sound (N,) float32 at 8 kHz for the thinker's token ids."""
        said = torch.empty((1, 0), dtype=torch.long)
        codes: list[int] = []
        for word in vocabulary.only_canonical(token_ids):
            prompt = torch.cat([said, torch.tensor([[word]])], dim=1)
            tokens = self.talker.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16)
            codes += vocabulary.codes_of_ids(tokens[0, prompt.shape[1] :].tolist())
            said = tokens[:, :-1]
        sound = self.codec.decode(audio_codes=torch.tensor([[codes]])).audio_values
        return np.asarray(sound[0].numpy())
