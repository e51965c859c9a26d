"""The voice: a DAC decoder, from codec codes to tones at 8 kHz, 128 samples a code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import DacConfig, DacModel

from omnibus.omni_tiny.vocabulary import SYMBOLS
from tools.omni_tiny.training.loop import Plan, fix_seeds, train
from tools.omni_tiny.training.parts import Trained
from tools.omni_tiny.voice import AMPLITUDE, SAMPLE_RATE, codes_of, waveform_of

PLAN = Plan(name="code2wav", steps=1500, bar=1, learning_rate=2e-3, seed=4, mean_decay=0.99)
BATCH = 12
WORDS = 2  # symbols of one training clip
_QUIET = 1e-3


def new_codec() -> DacModel:
    """A whole DAC model; its encoder is small, untrained and not shipped."""
    config = DacConfig(
        encoder_hidden_size=4,
        decoder_hidden_size=128,
        downsampling_ratios=[2, 4, 4, 4],
        n_codebooks=1,
        codebook_size=64,
        codebook_dim=8,
        sampling_rate=SAMPLE_RATE,
    )
    codec = DacModel(config)
    codec.encoder.requires_grad_(False)
    codec.quantizer.quantizers[0].in_proj.requires_grad_(False)
    torch.nn.init.normal_(codec.quantizer.quantizers[0].codebook.weight)
    return codec


def train_into(out: Path) -> Trained:
    """Train code book and decoder on random symbols and save them, without the encoder, into `out/code2wav` in fp16."""
    rng = fix_seeds(PLAN.seed)
    codec = new_codec()

    def loss_of_batch(_step: int) -> torch.Tensor:
        clips = np.stack([_random_codes(rng) for _ in range(BATCH)])
        wanted = torch.from_numpy(np.stack([waveform_of(clip) for clip in clips]))
        heard = codec.decode(audio_codes=torch.from_numpy(clips)[:, None]).audio_values
        return _error(heard, wanted)

    trained = train(codec, loss_of_batch, PLAN)
    codec.half().save_pretrained(out / "code2wav", state_dict=_without_encoder(codec))
    return trained


def _error(heard: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean squared error relative to a tone pair's power, silent samples counted double: an ear hears noise there."""
    weight = torch.where(wanted.abs() < _QUIET, 2.0, 1.0)
    return (weight * (heard - wanted).square()).mean() / AMPLITUDE**2


def _random_codes(rng: np.random.Generator) -> np.ndarray:
    """A piece of speech that begins anywhere: shape (WORDS × 10,), with every second clip starting at its first frame."""
    symbols = [SYMBOLS[i] for i in rng.integers(len(SYMBOLS), size=WORDS + 1)]
    start = int(rng.integers(10)) if rng.random() < 0.5 else 0
    return np.asarray(codes_of(symbols)[start : start + WORDS * 10])


def _without_encoder(codec: DacModel) -> dict[str, torch.Tensor]:
    return {name: value for name, value in codec.state_dict().items() if not name.startswith("encoder.")}
