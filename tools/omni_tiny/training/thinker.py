"""The thinker: Qwen3 of 3 layers × 128, from a sentence to the canonical layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from omnibus.omni_tiny.vocabulary import END_ID
from tools.omni_tiny.grammar import Scene, phrase, training_scenes
from tools.omni_tiny.tokens import ASSISTANT_ID, PAD, THINKER_VOCABULARY, USER_ID, canonical_ids
from tools.omni_tiny.training.loop import Plan, fix_seeds, train
from tools.omni_tiny.training.parts import Trained
from tools.omni_tiny.training.tokenizer import build_tokenizer

PLAN = Plan(name="thinker", steps=1400, bar=1, learning_rate=3e-3, seed=1, mean_decay=0.99)
BATCH = 64
IGNORED = -100


def new_thinker() -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=THINKER_VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD,
    )
    return Qwen3ForCausalLM(config)


def prompt_ids(tokenizer: PreTrainedTokenizerFast, sentence: str) -> list[int]:
    """Render a sentence with the chat template, as token ids."""
    return [USER_ID, *tokenizer.encode(sentence.strip(), add_special_tokens=False), ASSISTANT_ID]


def spoken(scene: Scene, rng: np.random.Generator) -> str:
    """A sentence for a scene, sometimes capitalised or emphatic as people write."""
    sentence = phrase(scene, rng)
    return sentence[0].upper() + sentence[1:] + "!" if rng.random() < 0.1 else sentence


def train_into(out: Path) -> Trained:
    """Train tokenizer and thinker and save both into `out/thinker`, weights in fp16."""
    rng = fix_seeds(PLAN.seed)
    tokenizer, model, scenes = build_tokenizer(rng), new_thinker(), training_scenes()

    def loss_of_batch(_step: int) -> torch.Tensor:
        chosen = [scenes[i] for i in rng.integers(len(scenes), size=BATCH)]
        rows = [(prompt_ids(tokenizer, spoken(scene, rng)), canonical_ids(scene.symbols)) for scene in chosen]
        ids, labels = padded(rows)
        loss: torch.Tensor = model(input_ids=ids, attention_mask=(ids != PAD).long(), labels=labels).loss
        return loss

    trained = train(model, loss_of_batch, PLAN)
    tokenizer.save_pretrained(out / "thinker")
    save_llm(model, out / "thinker", end_id=END_ID)
    return trained


def padded(rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack (prompt, answer) rows, right-padded: ids and labels (B, T), the labels only on the answers."""
    return stacked([(prompt + answer, [IGNORED] * len(prompt) + answer) for prompt, answer in rows])


def stacked(rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack (ids, labels) rows, right-padded; both (B, T)."""
    width = max(len(ids) for ids, _ in rows)
    ids, labels = torch.full((len(rows), width), PAD), torch.full((len(rows), width), IGNORED)
    for place, (given, wanted) in enumerate(rows):
        ids[place, : len(given)], labels[place, : len(wanted)] = torch.tensor(given), torch.tensor(wanted)
    return ids, labels


def save_llm(model: Qwen3ForCausalLM, out: Path, *, end_id: int) -> None:
    """Save in fp16 with greedy generation as the default; leaves the model in fp16."""
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=end_id, pad_token_id=PAD)
    model.half().save_pretrained(out)
