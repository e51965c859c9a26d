"""The dit: SanaTransformer2DModel of 4 layers × 96, flow matching on the vae's latents, conditioned on the thinker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel

from omnibus.omni_tiny.conditions import CHANNELS, conditions_of
from omnibus.omni_tiny.processors import EMPTY_PROMPT_FILE
from tools.omni_tiny.grammar import training_scenes
from tools.omni_tiny.training.encodings import Encoder
from tools.omni_tiny.training.loop import Plan, fix_seeds, train
from tools.omni_tiny.training.parts import Trained
from tools.omni_tiny.training.vae import encode, pictures_of

PLAN = Plan(name="dit", steps=4000, learning_rate=2e-3, seed=5, mean_decay=0.998)
BATCH = 24
DROPOUT = 0.1  # of the conditions, for classifier-free guidance
VARIANTS = 4  # pictures and sentences of each scene
SHIFT = 2.0  # of the noise schedule towards high noise, where the layout is decided


def new_dit() -> SanaTransformer2DModel:
    return SanaTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=3,
        attention_head_dim=32,
        num_layers=4,
        num_cross_attention_heads=3,
        cross_attention_head_dim=32,
        cross_attention_dim=96,
        caption_channels=CHANNELS,
        mlp_ratio=2.5,
        sample_size=8,
        patch_size=1,
        interpolation_scale=1,
    )


class Bank:
    """Latents, conditions and masks of the training scenes, made once."""

    def __init__(self, vae: AutoencoderDC, encoder: Encoder, rng: np.random.Generator) -> None:
        scenes = training_scenes()
        pictures = pictures_of(scenes, VARIANTS, rng)
        self.latents = encode(vae, pictures) * vae.config.scaling_factor
        self.embeds, self.masks = encoder.conditions([scene for scene in scenes for _ in range(VARIANTS)], rng)
        empty = conditions_of(encoder.empty_prompt())
        self.empty_embeds = torch.from_numpy(empty.embeds).half()
        self.empty_mask = torch.from_numpy(empty.mask)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, embeddings and masks of random scenes, any picture of a scene with any sentence for it.

        A dropped condition is the thinker's encoding of the empty prompt.
        """
        scene = rng.integers(len(self.latents) // VARIANTS, size=count) * VARIANTS
        picture, sentence = (torch.from_numpy(scene + rng.integers(VARIANTS, size=count)) for _ in range(2))
        embeds, masks = self.embeds[sentence], self.masks[sentence]
        dropped = torch.from_numpy(rng.random(count) < DROPOUT)
        embeds[dropped], masks[dropped] = self.empty_embeds, self.empty_mask
        return self.latents[picture], embeds.float(), masks


def train_into(out: Path) -> Trained:
    """Train the dit on the vae and the thinker in `out`, and make `out/dit` a SanaPipeline directory in fp16."""
    rng = fix_seeds(PLAN.seed)
    vae = AutoencoderDC.from_pretrained(out / "dit" / "vae", dtype=torch.float32)
    encoder, dit = Encoder(out / "thinker"), new_dit()
    bank = Bank(vae, encoder, rng)

    def loss_of_batch(_step: int) -> torch.Tensor:
        latents, embeds, masks = bank.draw(BATCH, rng)
        noise = torch.randn_like(latents)
        sigma = _noise_levels(BATCH)
        noisy = torch.lerp(latents, noise, sigma[:, None, None, None])
        velocity = dit(noisy, encoder_hidden_states=embeds, encoder_attention_mask=masks, timestep=sigma * 1000).sample
        return torch.nn.functional.mse_loss(velocity, noise - latents)

    trained = train(dit, loss_of_batch, PLAN)
    save_pipeline(out / "dit", vae, dit)
    np.save(out / "dit" / EMPTY_PROMPT_FILE, encoder.empty_prompt(), allow_pickle=False)
    return trained


def save_pipeline(out: Path, vae: AutoencoderDC, dit: SanaTransformer2DModel) -> None:
    """Save a pipeline that takes prompt embeddings only."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    pipeline = SanaPipeline(tokenizer=None, text_encoder=None, vae=vae, transformer=dit, scheduler=scheduler)
    pipeline.to(torch.float16).save_pretrained(out)


def _noise_levels(count: int) -> torch.Tensor:
    """Half uniform, half logit-normal, shifted as in sampling; in (0, 1)."""
    even, middle = torch.rand(count), torch.sigmoid(torch.randn(count))
    level = torch.where(torch.rand(count) < 0.5, even, middle)
    return SHIFT * level / (1 + (SHIFT - 1) * level)
