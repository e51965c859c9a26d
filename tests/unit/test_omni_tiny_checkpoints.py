"""The shipped checkpoints: complete, small, and of one mind with the vocabulary and the pipeline file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import omnibus.omni_tiny
from omnibus.omni_tiny import vocabulary
from omnibus.omni_tiny.conditions import CHANNELS, HIDDEN, LAYERS
from omnibus.omni_tiny.vocabulary import CODES
from omnibus.pipeline.loading import load_pipeline
from tools.omni_tiny import tokens
from tools.omni_tiny.voice import HOP, SAMPLE_RATE

pytestmark = pytest.mark.unit

CHECKPOINTS = Path(omnibus.omni_tiny.__file__).parent / "checkpoints"


def config(part: str) -> dict[str, Any]:
    return dict(json.loads((CHECKPOINTS / part / "config.json").read_text()))


def test_all_weights_are_under_6_mb_when_counted_together() -> None:
    files = [file for file in CHECKPOINTS.rglob("*") if file.is_file()]
    assert len([file for file in files if file.suffix == ".safetensors"]) == 5
    assert sum(file.stat().st_size for file in files) < 6_000_000
    assert (CHECKPOINTS / "MODEL_CARD.md").exists()


def test_every_stage_finds_its_checkpoint_when_the_pipeline_is_loaded() -> None:
    for stage in (one for one in load_pipeline("omni-tiny").stages if one.engine != "python"):
        folder = CHECKPOINTS / stage.model.removeprefix("package:omnibus.omni_tiny/checkpoints/")
        assert (folder / "config.json").exists() or (folder / "model_index.json").exists()


def test_the_tokenizer_has_the_vocabularys_ids_when_read() -> None:
    vocab = json.loads((CHECKPOINTS / "thinker" / "tokenizer.json").read_text())["model"]["vocab"]
    words = [word.replace(" ", "Ġ") for word in vocabulary.CANONICAL_WORDS]
    assert [vocab[token] for token in (*vocabulary.SPECIAL_TOKENS, *words)] == list(range(4 + len(words)))
    assert len(vocab) <= config("thinker")["vocab_size"] == tokens.THINKER_VOCABULARY


def test_end_tokens_agree_when_vocabulary_configs_and_pipeline_are_compared() -> None:
    assert config("thinker")["eos_token_id"] == vocabulary.END_ID
    assert config("talker")["eos_token_id"] == tokens.WORD_END_ID
    assert load_pipeline("omni-tiny").stage("talker").default_sampling_params["stop_token_ids"] == [tokens.WORD_END_ID]


def test_shapes_agree_when_thinker_dit_and_conditions_are_compared() -> None:
    assert config("thinker")["hidden_size"] == HIDDEN
    assert config("dit/transformer")["caption_channels"] == CHANNELS
    assert load_pipeline("omni-tiny").stage("thinker").engine_args["hidden_states"] == list(LAYERS)


def test_rates_agree_when_voice_and_codec_are_compared() -> None:
    codec = config("code2wav")
    assert (codec["sampling_rate"], codec["hop_length"], codec["n_codebooks"]) == (SAMPLE_RATE, HOP, 1)
    assert codec["codebook_size"] >= CODES
