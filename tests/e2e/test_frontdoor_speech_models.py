"""VITS and Whisper behind OpenAI's speech and transcription routes, on tiny random weights of the real classes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
import transformers

from omnibus.broker.connection import Connection
from omnibus.media import sound
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from tests.support import tiny_speech
from tests.support.front import front

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
]


def spec_of(name: str, checkpoint: Path, task: str, delivers: str) -> PipelineSpec:
    stage = StageSpec(
        stage_id=0, name="voice", engine="transformers", model=str(checkpoint), engine_args={"task": task}, slots=2,
        final_output=True, final_output_type=delivers,
    )  # fmt: skip
    return PipelineSpec(name=name, deadline=120.0, stages=(stage,))


async def test_vits_speaks_over_http(connection: Connection, pipeline: str, tmp_path: Path) -> None:
    checkpoint = tiny_speech.make_vits(tmp_path)
    async with front(connection, spec_of(pipeline, checkpoint, "speak", "audio")) as door:
        speech = await door.openai.audio.speech.create(
            model=pipeline, voice="alloy", input="over the lazy dog", response_format="wav",
            extra_body={"sampling_params": {"voice": {"seed": 4, "speaker_id": 1}}},
        )  # fmt: skip
        with pytest.raises(openai.BadRequestError) as caught:
            await door.openai.audio.speech.create(
                model=pipeline, voice="alloy", input="a", extra_body={"sampling_params": {"voice": {"speaker_id": 9}}}
            )
        assert caught.value.param == "sampling_params.voice.speaker_id"
        with pytest.raises(openai.BadRequestError, match="tokenizer knows nothing of this text") as unknown:
            await door.openai.audio.speech.create(model=pipeline, voice="alloy", input="日本")
        assert unknown.value.param == "input"
    model, tokenizer = (
        kind.from_pretrained(checkpoint) for kind in (transformers.VitsModel, transformers.AutoTokenizer)
    )
    torch.manual_seed(4)
    with torch.no_grad():
        expected = model(**tokenizer("over the lazy dog", return_tensors="pt"), speaker_id=1).waveform[0].numpy()
    samples, rate = sound.decoded(speech.content)
    assert rate == tiny_speech.RATE
    np.testing.assert_allclose(samples[0][: len(expected)], expected.clip(-1, 1), atol=1e-3)


async def test_whisper_transcribes_over_http(connection: Connection, pipeline: str, tmp_path: Path) -> None:
    checkpoint = tiny_speech.make_whisper(tmp_path)
    spoken = sound.encoded(np.sin(np.arange(16_000) / 5).astype(np.float32), 16_000, "flac")
    async with front(connection, spec_of(pipeline, checkpoint, "transcribe", "text")) as door:
        made = await door.openai.audio.transcriptions.create(
            model=pipeline, file=("a.flac", io.BytesIO(spoken)), language="de"
        )
        with pytest.raises(openai.BadRequestError) as caught:
            await door.openai.audio.transcriptions.create(
                model=pipeline, file=("a.flac", io.BytesIO(spoken)), language="fr"
            )
        assert caught.value.param == "language"
    model = transformers.WhisperForConditionalGeneration.from_pretrained(checkpoint).eval()
    features = transformers.WhisperFeatureExtractor.from_pretrained(checkpoint)(
        sound.mono(spoken, 16_000), sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
    )
    tokens = model.generate(**features, language="de")[0]
    expected = transformers.WhisperTokenizer.from_pretrained(checkpoint).decode(tokens, skip_special_tokens=True)
    assert made.text == expected.strip() != ""
