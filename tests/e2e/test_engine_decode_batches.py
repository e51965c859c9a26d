"""Sounds that share a call of a decoder, on tiny random codecs and vocoders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.transformers.codec_model import Decoder
from omnibus.workers.engines.transformers.engine import TransformersEngine
from omnibus.workers.engines.transformers.parts import Part
from tests.support import tiny_checkpoints
from tests.support.jobs import make_job, run_job

pytestmark = [
    pytest.mark.e2e,
    # transformers' codecs still use torch's old weight norm.
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
]
MOST = 3


def make_stage(checkpoint: Path, **engine_args: Any) -> StageSpec:
    return StageSpec(
        stage_id=3, name="voice", engine="transformers", model=str(checkpoint), slots=8, engine_args=engine_args
    )


@asynccontextmanager
async def counting_calls(
    stage: StageSpec, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[TransformersEngine, list[int]]]:
    """An engine, and how many parts each call of its decoder had."""
    sizes, decode = list[int](), Decoder.decode

    def counted(self: Decoder, parts: Sequence[Part]) -> list[np.ndarray]:
        sizes.append(len(parts))
        return decode(self, parts)

    monkeypatch.setattr(Decoder, "decode", counted)
    engine = TransformersEngine(stage)
    await engine.start()
    try:
        yield engine, sizes
    finally:
        await engine.close()


@pytest.mark.parametrize("input_name", ["codes", "spectrogram"])
async def test_sounds_of_one_length_share_a_call_and_each_gets_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, input_name: str
) -> None:
    rng = np.random.default_rng(3)
    if input_name == "codes":
        stage = make_stage(tiny_checkpoints.make_codec(tmp_path), max_batch=MOST)
        clips = [rng.integers(tiny_checkpoints.CODEBOOK, size=(tiny_checkpoints.CODEBOOKS, 20)) for _ in range(7)]
        expected = [decoded(tmp_path, clip) for clip in clips]
    else:
        vocoder = tiny_checkpoints.make_vocoder(tmp_path)
        stage = make_stage(tmp_path, model_class="SpeechT5HifiGan", input="spectrogram", max_batch=MOST)
        clips = [rng.standard_normal((6, 8)).astype(np.float32) for _ in range(7)]
        with torch.no_grad():
            expected = [vocoder(torch.from_numpy(clip)).numpy() for clip in clips]
    async with counting_calls(stage, monkeypatch) as (engine, sizes):
        jobs = [make_job(f"clip-{place}", values={input_name: clip}) for place, clip in enumerate(clips)]
        answers = await asyncio.gather(*(run_job(engine, job) for job in jobs))

    for (_, last), sound in zip(answers, expected, strict=True):
        np.testing.assert_allclose(last.outputs["audio"], sound, atol=1e-5)
    assert sum(sizes) == len(clips)
    assert max(sizes) == MOST


def decoded(checkpoint: Path, codes: np.ndarray) -> np.ndarray:
    model = transformers.DacModel.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        return model.decode(audio_codes=torch.from_numpy(codes)[None]).audio_values[0].numpy()
