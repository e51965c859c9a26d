"""The thinker's tokenizer: a byte-level BPE over the grammar's sentences, case-blind, with a chat template."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from omnibus.omni_tiny.vocabulary import CANONICAL_WORDS, SPECIAL_TOKENS
from tools.omni_tiny.grammar import phrase, training_scenes
from tools.omni_tiny.tokens import THINKER_VOCABULARY

# The model has no memory: only the last user turn counts.
CHAT_TEMPLATE = (
    "{%- set asked = messages | selectattr('role', 'equalto', 'user') | list -%}"
    "<|user|>{{ asked[-1]['content'] | trim if asked else '' }}"
    "{%- if add_generation_prompt %}<|assistant|>{% endif -%}"
)
_SENTENCES = 20000


def build_tokenizer(rng: np.random.Generator) -> PreTrainedTokenizerFast:
    """Train the BPE and give the canonical words the ids of `vocabulary`."""
    scenes = training_scenes()
    sentences = [phrase(scenes[i], rng) for i in rng.integers(len(scenes), size=_SENTENCES)]
    answers = [scene.text for scene in scenes for _ in range(4)]
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=THINKER_VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(sentences + answers, trainer)
    ordered = Tokenizer.from_str(json.dumps(_with_canonical_ids(json.loads(bpe.to_str()))))
    pad, end, _, _ = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=ordered,
        eos_token=end,
        pad_token=pad,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def _with_canonical_ids(state: dict[str, Any]) -> dict[str, Any]:
    """Renumber the vocabulary: special tokens, canonical words, the rest in its old order."""
    old: dict[str, int] = state["model"]["vocab"]
    first = [*SPECIAL_TOKENS, *(word.replace(" ", "Ġ") for word in CANONICAL_WORDS)]
    missing = [token for token in first if token not in old]
    assert not missing, f"the BPE has not learnt {missing}"
    rest = sorted(set(old) - set(first), key=lambda token: old[token])
    state["model"]["vocab"] = {token: place for place, token in enumerate([*first, *rest])}
    return state
