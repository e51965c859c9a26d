"""A checkpoint for the tiny pipelines of vLLM-Omni: omni-tiny's thinker in ar/, its DiT with a random encoder at the root."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

import omnibus.omni_tiny

_SHIPPED = Path(omnibus.omni_tiny.__file__).parent / "checkpoints"


def make_checkpoint(folder: Path) -> Path:
    """Write it into a new folder."""
    dit = _SHIPPED / "dit"
    for part in ("transformer", "vae", "scheduler"):
        shutil.copytree(dit / part, folder / part)
    shutil.copytree(_SHIPPED / "thinker", folder / "ar")
    tokenizer = AutoTokenizer.from_pretrained(_SHIPPED / "thinker")
    tokenizer.save_pretrained(folder / "tokenizer")
    width = json.loads((dit / "transformer" / "config.json").read_text())["caption_channels"]
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer) + 8, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, sliding_window=64, query_pre_attn_scalar=32,
    )  # fmt: skip
    Gemma2Model(config).save_pretrained(folder / "text_encoder")
    index = json.loads((dit / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "Gemma2Model"]
    index["tokenizer"] = ["transformers", type(tokenizer).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny_draw", "architectures": ["TinyWriter"]}))
    return folder
