"""VITS and Whisper behind OpenAI's speech and transcription routes, on tiny random weights of the real classes."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

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


@pytest.mark.filterwarnings("ignore:std.*degrees of freedom:UserWarning")  # of so few tokens
async def test_whisper_gives_the_times_of_segments_and_words_over_http(
    connection: Connection, pipeline: str, tmp_path: Path
) -> None:
    checkpoint = tiny_speech.make_whisper(tmp_path)
    spoken = sound.encoded(np.sin(np.arange(40_000) / 5).astype(np.float32), 16_000, "flac")
    asked: Any = {"model": pipeline, "language": "de", "response_format": "verbose_json"}
    async with front(connection, spec_of(pipeline, checkpoint, "transcribe", "text")) as door:
        transcribe = partial(door.openai.audio.transcriptions.create, **asked)
        plain = await transcribe(file=("a.flac", io.BytesIO(spoken)))
        words = await transcribe(file=("a.flac", io.BytesIO(spoken)), timestamp_granularities=["word", "segment"])
    model = transformers.WhisperForConditionalGeneration.from_pretrained(checkpoint).eval()
    features = transformers.WhisperFeatureExtractor.from_pretrained(checkpoint)(
        sound.mono(spoken, 16_000), sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
    )
    made = model.generate(**features, language="de", return_timestamps=True, return_segments=True)["segments"][0]

    assert (plain.language, plain.duration) == ("german", 2.5)
    assert plain.segments
    assert [one.tokens for one in plain.segments] == [part["tokens"].tolist() for part in made]
    assert [one.start for one in plain.segments] == [round(min(float(part["start"]), 2.5), 2) for part in made]
    assert "".join(one.text for one in plain.segments).strip() == plain.text
    assert all(0 <= one.start <= one.end <= plain.duration for one in plain.segments)
    assert "".join(one.word for one in words.words or ()) == "".join(plain.text.split()) != ""
    assert all(0 <= one.start <= one.end <= plain.duration for one in words.words or ())
    assert words.segments == plain.segments


async def test_whisper_without_timestamps_refuses_them(connection: Connection, pipeline: str, tmp_path: Path) -> None:
    checkpoint = tiny_speech.make_whisper(tmp_path)
    config = transformers.GenerationConfig.from_pretrained(checkpoint)
    del config.alignment_heads
    config.save_pretrained(checkpoint)
    spoken = sound.encoded(np.zeros(16_000, np.float32), 16_000, "flac")
    async with front(connection, spec_of(pipeline, checkpoint, "transcribe", "text")) as door:
        with pytest.raises(openai.BadRequestError, match="alignment_heads") as caught:
            await door.openai.audio.transcriptions.create(
                model=pipeline, file=("a.flac", io.BytesIO(spoken)), response_format="verbose_json",
                timestamp_granularities=["word"],
            )  # fmt: skip
        assert caught.value.param == "timestamp_granularities"
