"""A tiny random Qwen2-Audio: it reads bytes and sounds, 25 tokens a second."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support.tiny_presets import QWEN_SPECIALS, WIDTH, byte_tokenizer

_SOUND = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")


def make_listener(folder: Path) -> Path:
    """The model with its tokenizer and its processor."""
    torch.manual_seed(7)
    tokenizer = byte_tokenizer((*QWEN_SPECIALS, *_SOUND))
    text = {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048, "initializer_range": 0.3,
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    sound = {
        "d_model": WIDTH, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "initializer_range": 0.3,
    }  # fmt: skip
    config = transformers.Qwen2AudioConfig(
        audio_config=sound, text_config=text, audio_token_index=tokenizer.convert_tokens_to_ids(_SOUND[0])
    )
    transformers.Qwen2AudioForConditionalGeneration(config).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")  # transformers names the text's with one `model.` too many
    renamed = {name.replace("language_model.model.", "language_model.", 1): found for name, found in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    transformers.Qwen2AudioProcessor(
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=128), tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)  # fmt: skip
    return folder
