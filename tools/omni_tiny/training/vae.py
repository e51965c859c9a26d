"""The vae: AutoencoderDC, 8 times smaller, 8 channels: a 64 × 64 picture becomes (8, 8, 8)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC

from tools.omni_tiny.drawing import draw
from tools.omni_tiny.grammar import Scene, training_scenes
from tools.omni_tiny.training.loop import Plan, fix_seeds, train
from tools.omni_tiny.training.parts import Trained

PLAN = Plan(name="vae", steps=1600, learning_rate=3e-3, seed=2, mean_decay=0.99)
BATCH = 12
VARIANTS = 3
LATENT_NOISE = 0.15  # what the decoder must bear from the dit
_SPREAD_WEIGHT = 1e-4  # keeps the latents near unit variance


def new_vae() -> AutoencoderDC:
    return AutoencoderDC(
        latent_channels=8,
        attention_head_dim=16,
        encoder_block_out_channels=(16, 32, 64, 64),
        decoder_block_out_channels=(16, 32, 64, 64),
        encoder_layers_per_block=(0, 1, 1, 1),
        decoder_layers_per_block=(0, 1, 2, 2),
        encoder_qkv_multiscales=((), (), (), ()),
        decoder_qkv_multiscales=((), (), (), ()),
    )


def train_into(out: Path) -> Trained:
    """Train on pictures of training scenes and save into `out/dit/vae` in fp16, with the latents' scale in the config."""
    rng = fix_seeds(PLAN.seed)
    vae, pictures = new_vae(), pictures_of(training_scenes(), VARIANTS, rng)

    def loss_of_batch(_step: int) -> torch.Tensor:
        pixels = as_pixels(pictures[rng.integers(len(pictures), size=BATCH)])
        latents = vae.encode(pixels).latent
        drawn = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        error = drawn - pixels
        return error.abs().mean() + error.square().mean() + _SPREAD_WEIGHT * latents.square().mean()

    trained = train(vae, loss_of_batch, PLAN)
    latents = encode(vae, pictures[rng.integers(len(pictures), size=512)])
    vae.register_to_config(scaling_factor=round(1.0 / float(latents.std()), 4))
    vae.half().save_pretrained(out / "dit" / "vae")
    return trained


def pictures_of(scenes: tuple[Scene, ...], variants: int, rng: np.random.Generator) -> np.ndarray:
    """`variants` pictures of each scene; shape (scenes × variants, 64, 64, 3), uint8, a scene's pictures side by side."""
    return np.stack([draw(scene, rng) for scene in scenes for _ in range(variants)])


def as_pixels(pictures: np.ndarray) -> torch.Tensor:
    """Pictures (B, 64, 64, 3) uint8 as (B, 3, 64, 64) float32 in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def encode(vae: AutoencoderDC, pictures: np.ndarray) -> torch.Tensor:
    """Latents (B, 8, 8, 8) of pictures, not yet scaled."""
    with torch.no_grad():
        return torch.cat([vae.encode(as_pixels(pictures[at : at + 64])).latent for at in range(0, len(pictures), 64)])
