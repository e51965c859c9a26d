"""The talker: Qwen3 of 2 layers × 64, from the thinker's canonical token ids, word by word, to codec codes."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tools.omni_tiny.grammar import Scene, training_scenes
from tools.omni_tiny.tokens import PAD, TALKER_VOCABULARY, WORD_END_ID, canonical_ids, code_ids
from tools.omni_tiny.training.loop import Plan, fix_seeds, train
from tools.omni_tiny.training.parts import Trained
from tools.omni_tiny.training.thinker import IGNORED, save_llm, stacked
from tools.omni_tiny.voice import FRAMES_PER_SYMBOL, codes_of

PLAN = Plan(name="talker", steps=1200, bar=1, learning_rate=3e-3, seed=3, mean_decay=0.99)
BATCH = 32


def new_talker() -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=TALKER_VOCABULARY,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=WORD_END_ID,
        pad_token_id=PAD,
    )
    return Qwen3ForCausalLM(config)


def train_into(out: Path) -> Trained:
    """Train the talker and save it into `out/talker` in fp16."""
    rng = fix_seeds(PLAN.seed)
    model, rows = new_talker(), [_row(scene) for scene in training_scenes()]

    def loss_of_batch(_step: int) -> torch.Tensor:
        ids, labels = stacked([rows[i] for i in rng.integers(len(rows), size=BATCH)])
        loss: torch.Tensor = model(input_ids=ids, attention_mask=(ids != PAD).long(), labels=labels).loss
        return loss

    trained = train(model, loss_of_batch, PLAN)
    save_llm(model, out / "talker", end_id=WORD_END_ID)
    return trained


def _row(scene: Scene) -> tuple[list[int], list[int]]:
    """Ids and labels: each word and its codes, up to the silence. That is foretold where the next word stands, and never read."""
    codes, ids, labels = code_ids(codes_of(scene.symbols)), list[int](), list[int]()
    for place, word in enumerate(canonical_ids(scene.symbols)):
        *spoken, _silence = codes[place * FRAMES_PER_SYMBOL : (place + 1) * FRAMES_PER_SYMBOL]
        ids += [word, *spoken]
        labels += [WORD_END_ID if place else IGNORED, *spoken]
    return [*ids, WORD_END_ID], [*labels, WORD_END_ID]
