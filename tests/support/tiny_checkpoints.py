"""Tiny random checkpoints, made in a second: they compute nothing useful, exactly reproducibly."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
import transformers

from tools.random_checkpoints import END_ID, HALVES, make_llm, make_painter

__all__ = ["END_ID", "HALVES", "make_codec", "make_diffusion", "make_llm", "make_painter"]

SAMPLE_RATE = 8000
HOP = 8
CODEBOOK = 64
CODEBOOKS = 2
CONDITION_WIDTH = 32


def make_diffusion(folder: Path) -> Path:
    """A Sana pipeline without text encoder: 32-wide embeddings in, images out."""
    torch.manual_seed(7)
    vae = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.5,
    )
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=CONDITION_WIDTH,
        sample_size=16,
        patch_size=1,
    )
    pipeline = diffusers.SanaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0),
    )
    pipeline.save_pretrained(folder)
    return folder


def make_codec(folder: Path) -> Path:
    """A DAC with two codebooks of 64 codes, 8 samples a code at 8 kHz."""
    torch.manual_seed(7)
    config = transformers.DacConfig(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        decoder_hidden_size=16,
        upsampling_ratios=[4, 2],
        n_codebooks=CODEBOOKS,
        codebook_size=CODEBOOK,
        codebook_dim=4,
        sampling_rate=SAMPLE_RATE,
    )
    transformers.DacModel(config).save_pretrained(folder)
    return folder


def make_vocoder(folder: Path) -> transformers.SpeechT5HifiGan:
    """A vocoder of 8 features a frame, at 16 kHz, and its checkpoint."""
    torch.manual_seed(7)
    config = transformers.SpeechT5HifiGanConfig(model_in_dim=8, upsample_initial_channel=16, sampling_rate=16000)
    vocoder = transformers.SpeechT5HifiGan(config).eval()
    vocoder.save_pretrained(folder)
    return vocoder
