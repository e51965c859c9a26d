"""A tiny random LoRA adapter for the model of `tiny_checkpoints.make_llm`, and what it makes of that model's weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

RANK = 4
ALPHA = 8
TARGETS = ("q_proj", "o_proj")


def make_adapter(folder: Path, base: transformers.Qwen3ForCausalLM, *, seed: int = 0) -> Path:
    """An adapter in PEFT's files, large enough to change what the model says."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, width_in, width_out in _targets(base):
        weights[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, width_in, generator=generator) * 0.3
        weights[f"base_model.model.{name}.lora_B.weight"] = torch.randn(width_out, RANK, generator=generator) * 0.3
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(TARGETS), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def adapted(checkpoint: Path, adapter: Path) -> transformers.Qwen3ForCausalLM:
    """The model with W + alpha / rank · B·A in the place of every W that the adapter targets (arXiv:2106.09685, 4.1)."""
    model = transformers.Qwen3ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    weights = load_file(adapter / "adapter_model.safetensors")
    for name, _, _ in _targets(model):
        down, up = (weights[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        model.get_submodule(name).weight.data += ALPHA / RANK * (up @ down)
    return model


def _targets(model: transformers.Qwen3ForCausalLM) -> list[tuple[str, int, int]]:
    modules = ((name, module) for name, module in model.named_modules() if name.endswith(TARGETS))
    return [(name, module.in_features, module.out_features) for name, module in modules]
