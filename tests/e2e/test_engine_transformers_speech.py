"""Models of transformers that speak, play and listen: tiny random weights of the real classes, beside transformers itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from omnibus.errors import CheckpointMissing, EmptyPrompt, EngineRejected, PipelineError
from omnibus.media import sound
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.request import AudioPart, Message
from omnibus.workers.engines.protocol import Chunk, Engine, EngineInput, TextDelta
from omnibus.workers.engines.transformers.tasks import transformers_engine
from tests.support import tiny_speech
from tests.support.jobs import make_job, run_job
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.e2e,
    # transformers' vocoders still use torch's old weight norm.
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
]
TEXT = "the quick brown fox"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("speech")


@pytest.fixture(scope="module")
def vits(folder: Path) -> Path:
    return tiny_speech.make_vits(folder / "vits")


@pytest.fixture(scope="module")
def csm(folder: Path) -> Path:
    return tiny_speech.make_csm(folder / "csm")


@pytest.fixture(scope="module")
def whisper(folder: Path) -> Path:
    return tiny_speech.make_whisper(folder / "whisper")


@asynccontextmanager
async def started(checkpoint: Path, task: str = "speak", **engine_args: Any) -> AsyncIterator[Engine]:
    stage = StageSpec(
        stage_id=0, name="voice", engine="transformers", model=str(checkpoint), slots=2,
        engine_args={"task": task, **engine_args},
    )  # fmt: skip
    engine = transformers_engine(stage)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def spoken(engine: Engine, sampling: Mapping[str, Any] = {}, **given: Any) -> np.ndarray:
    before, last = await run_job(engine, make_job(sampling=sampling, **(given or {"text": TEXT})))
    assert before == []
    samples: np.ndarray = last.outputs["audio"]
    assert samples.dtype == np.float32
    assert samples.size
    return samples


async def test_vits_speaks_as_transformers_does(vits: Path) -> None:
    model, tokenizer = transformers.VitsModel.from_pretrained(vits), transformers.AutoTokenizer.from_pretrained(vits)
    async with started(vits) as engine:
        made = await spoken(engine, {"seed": 5, "speaker_id": 1, "speaking_rate": 0.5})
        again = await spoken(engine, {"seed": 5, "speaker_id": 1, "speaking_rate": 0.5})
        plain = await spoken(engine, {"seed": 5})
    model.speaking_rate = 0.5
    torch.manual_seed(5)
    with torch.no_grad():
        expected = model(**tokenizer(TEXT, return_tensors="pt"), speaker_id=1).waveform[0].numpy()
    np.testing.assert_allclose(made, expected, atol=1e-5)
    np.testing.assert_array_equal(made, again)
    assert len(plain) < len(made), "the rate of one request is not that of the next"


async def test_speecht5_speaks_as_transformers_does(folder: Path) -> None:
    checkpoint, vocoder = tiny_speech.make_speecht5(folder / "speecht5")
    speaker = np.linspace(-1, 1, 8, dtype=np.float32)
    async with started(checkpoint, vocoder=str(vocoder)) as engine:
        asked = {"seed": 7, "speaker_embeddings": speaker.tolist(), "maxlenratio": 4.0}
        made = await spoken(engine, asked, token_ids=[1, 5, 6, 7])
        by_value = await spoken(
            engine, {"seed": 7, "maxlenratio": 4.0}, token_ids=[1, 5, 6, 7], values={"speaker_embeddings": speaker}
        )
        for wrong in ({}, {"speaker_embeddings": [1.0]}):
            with pytest.raises(EngineRejected) as caught:
                await spoken(engine, wrong, token_ids=[1, 5])
            assert caught.value.param == "speaker_embeddings"
        with pytest.raises(EngineRejected, match="no tokenizer"):
            await spoken(engine, asked)
    model = transformers.SpeechT5ForTextToSpeech.from_pretrained(checkpoint).eval()
    torch.manual_seed(7)
    expected = model.generate_speech(
        torch.tensor([[1, 5, 6, 7]]), speaker_embeddings=torch.from_numpy(speaker)[None], maxlenratio=4.0,
        vocoder=transformers.SpeechT5HifiGan.from_pretrained(vocoder).eval(),
    )  # fmt: skip
    np.testing.assert_allclose(made, expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(made, by_value)
    with pytest.raises(PipelineError, match="vocoder"):
        async with started(checkpoint):
            pass


@pytest.mark.parametrize(
    ("count", "ratios", "param"),
    [
        (21, {}, "prompt"),
        (20, {"maxlenratio": 3.1}, "maxlenratio"),
        (20, {"minlenratio": 3.1}, "minlenratio"),
        (20, {"minlenratio": 3.0}, None),
        (20, {}, None),
    ],
)
async def test_speecht5_is_asked_for_no_more_than_its_positions(
    tmp_path: Path, count: int, ratios: dict[str, float], param: str | None
) -> None:
    checkpoint, vocoder = tiny_speech.make_speecht5(tmp_path, max_text_positions=20, max_speech_positions=30)
    asked = {"speaker_embeddings": [0.0] * 8, "threshold": 1.0, **ratios}
    async with started(checkpoint, vocoder=str(vocoder)) as engine:
        if param is None:
            assert len(await spoken(engine, asked, token_ids=[5] * count)) > 0
            return
        with pytest.raises(EngineRejected, match="20 tokens") as caught:
            await spoken(engine, asked, token_ids=[5] * count)
    assert caught.value.param == param


async def test_length_of_a_text_is_what_the_stage_says(vits: Path) -> None:
    async with started(vits, max_characters=5) as engine:
        await spoken(engine, text="a" * 5)
        with pytest.raises(EngineRejected, match="5 characters, not 6"):
            await spoken(engine, text="a" * 6)


@pytest.mark.parametrize("sampling", [{"max_new_tokens": 9}, {"do_sample": True, "temperature": 0.7, "seed": 3}])
async def test_musicgen_plays_as_transformers_does(folder: Path, sampling: dict[str, Any]) -> None:
    checkpoint = tiny_speech.make_musicgen(folder / "musicgen")
    async with started(checkpoint) as engine:
        made = await spoken(engine, sampling)
        calm = await spoken(engine, {**sampling, "do_sample": True, "temperature": 0})
    model = transformers.MusicgenForConditionalGeneration.from_pretrained(checkpoint).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(checkpoint)(TEXT, return_tensors="pt")
    torch.manual_seed(sampling.get("seed", 0))
    asked = {name: value for name, value in sampling.items() if name != "seed"}
    expected = model.generate(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, **asked)[0, 0]
    np.testing.assert_allclose(made, expected.numpy(), atol=1e-5)
    assert calm.shape == made.shape


@pytest.mark.parametrize(
    "sampling", [{}, {"do_sample": True, "top_k": 20, "seed": 3, "guidance_scale": 3.0, "max_new_tokens": 30}]
)
async def test_dia_speaks_as_transformers_does(folder: Path, sampling: dict[str, Any]) -> None:
    checkpoint = tiny_speech.make_dia(folder / f"dia-{len(sampling)}")
    async with started(checkpoint) as engine:
        made = await spoken(engine, sampling)
        np.testing.assert_array_equal(await spoken(engine, sampling), made)
        for wrong, param in (({"temperature": 0.5}, "temperature"), ({"max_new_tokens": 16}, "max_new_tokens")):
            with pytest.raises(EngineRejected) as caught:
                await spoken(engine, wrong)
            assert caught.value.param == param
    model = transformers.DiaForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    asked = {name: value for name, value in sampling.items() if name != "seed"}
    torch.manual_seed(sampling.get("seed", 0))
    expected = processor.decode(model.generate(**processor(text=[f"[S1] {TEXT}"], padding=False), **asked))
    assert len(made) > 100
    np.testing.assert_allclose(made, expected.numpy(), atol=1e-5)


async def test_csm_speaks_as_transformers_does_whole_and_while_it_still_speaks(csm: Path) -> None:
    model = transformers.CsmForConditionalGeneration.from_pretrained(csm).eval()
    ids = transformers.AutoTokenizer.from_pretrained(csm)(f"[0]{TEXT}", return_tensors="pt").input_ids
    with torch.no_grad():
        (expected,) = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), output_audio=True)
    async with started(csm) as engine:
        np.testing.assert_allclose(await spoken(engine), expected.numpy(), atol=1e-5)
    async with started(csm, chunk_frames=5, context_frames=16) as engine:
        before, last = await run_job(engine, make_job(text=TEXT))
    assert len(before) == 5, "24 frames, 5 at a time"
    assert all(isinstance(item, Chunk) for item in before)
    pieces = np.concatenate([item.outputs["audio"] for item in before])
    np.testing.assert_array_equal(pieces, last.outputs["audio"])
    np.testing.assert_allclose(pieces, expected.numpy(), atol=1e-4)


async def test_sound_leaves_before_the_last_frame_and_an_aborted_job_makes_no_more(csm: Path) -> None:
    async with started(csm, chunk_frames=2, context_frames=4) as engine:
        job = make_job("long", text=TEXT, sampling={"max_new_tokens": 200})
        items = []
        async for item in engine.generate(job):
            items.append(item)
            if len(items) == 2:
                await engine.abort("long")
        assert items[-1].finish_reason == "abort"
        assert len(items) < 90
        steps = engine.progress()
        assert 0 < steps < 200
        assert (await spoken_after(engine)).size


async def spoken_after(engine: Engine) -> np.ndarray:
    _, last = await run_job(engine, make_job("next", text=TEXT, sampling={"max_new_tokens": 4}))
    samples: np.ndarray = last.outputs["audio"]
    return samples


async def test_waiting_job_ends_at_once_when_it_is_aborted(csm: Path) -> None:
    async with started(csm) as engine:
        running = asyncio.ensure_future(run_job(engine, make_job("a", text=TEXT, sampling={"max_new_tokens": 200})))
        waiting = asyncio.ensure_future(run_job(engine, make_job("b", text=TEXT)))
        await eventually(lambda: (engine.stats().running, engine.stats().waiting) == (1, 1))
        await engine.abort("b")
        assert (await waiting)[1].finish_reason == "abort"
        assert not running.done()
        await engine.abort("a")
        assert (await running)[1].finish_reason == "abort"


def tone(seconds: float) -> bytes:
    at = np.arange(int(8000 * seconds)) / 8000
    return sound.encoded((0.5 * np.sin(2 * np.pi * 440 * at)).astype(np.float32), 8000)


def asked_to_listen(*files: bytes) -> dict[str, Any]:
    return {"messages": (Message(role="user", content=tuple(AudioPart(data=file) for file in files)),)}


@pytest.mark.parametrize("seconds", [1.0, 35.0])
@pytest.mark.parametrize("sampling", [{}, {"language": "german"}, {"task": "translate", "prompt": "ab"}])
async def test_whisper_writes_what_transformers_does(whisper: Path, seconds: float, sampling: dict[str, Any]) -> None:
    data = tone(seconds)
    async with started(whisper, "transcribe") as engine:
        before, last = await run_job(engine, make_job(sampling=sampling, **asked_to_listen(data)))
    model = transformers.WhisperForConditionalGeneration.from_pretrained(whisper).eval()
    tokenizer = transformers.WhisperTokenizer.from_pretrained(whisper)
    features = transformers.WhisperFeatureExtractor.from_pretrained(whisper)(
        sound.mono(data, 16_000), sampling_rate=16_000, return_tensors="pt", return_attention_mask=True, truncation=False,
        padding="longest" if seconds > 30 else "max_length",
    )  # fmt: skip
    options = dict(sampling)
    if "prompt" in options:
        options["prompt_ids"] = tokenizer.get_prompt_ids(options.pop("prompt"), return_tensors="pt")
    tokens = model.generate(**features, return_timestamps=seconds > 30, **options)[0]
    expected = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert expected
    assert last.outputs["text"] == expected
    assert last.outputs["seconds"] == pytest.approx(seconds, abs=0.01)
    assert "".join(item.text for item in before if isinstance(item, TextDelta)) == expected


@pytest.mark.parametrize(
    ("given", "sampling", "param"),
    [
        (asked_to_listen(b"junk"), {}, "messages[0].content[0].audio"),
        (asked_to_listen(), {}, "messages"),
        (asked_to_listen(tone(0.1), tone(0.1)), {}, "messages"),
        (asked_to_listen(tone(0.1)), {"language": "french"}, "language"),
        (asked_to_listen(tone(0.1)), {"top_k": 1}, "top_k"),
        (asked_to_listen(tone(0.1)), {"temperature": "hot"}, "temperature"),
    ],
)
async def test_sound_is_refused_naming_the_field(
    whisper: Path, given: dict[str, Any], sampling: dict[str, Any], param: str
) -> None:
    async with started(whisper, "transcribe") as engine:
        with pytest.raises(Exception) as caught:  # noqa: PT011 its field is checked
            await run_job(engine, make_job(sampling=sampling, **given))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("given", "sampling", "param"),
    [
        ({"text": TEXT}, {"voice": "x"}, "voice"),
        ({"text": TEXT}, {"speaker_id": 2}, "speaker_id"),
        ({"text": TEXT}, {"speaking_rate": 0}, "speaking_rate"),
        ({"text": TEXT}, {"speaking_rate": 1e-6}, "speaking_rate"),
        ({"text": TEXT}, {"noise_scale_duration": 30.0}, "noise_scale_duration"),
        ({"token_ids": [1, 99]}, {}, "prompt"),
        ({"text": "a" * 4097}, {}, "prompt"),
        ({"token_ids": [1] * 4097}, {}, "prompt"),
        ({"text": "a" * 500}, {"speaking_rate": 0.1}, "speaking_rate"),
        ({"text": TEXT, "values": {"codes": [1]}}, {}, "codes"),
    ],
)
async def test_text_is_refused_naming_the_field(
    vits: Path, given: dict[str, Any], sampling: dict[str, Any], param: str
) -> None:
    async with started(vits) as engine:
        with pytest.raises(EngineRejected) as caught:
            await spoken(engine, sampling, **given)
        assert caught.value.param == param
        with pytest.raises(EmptyPrompt):
            await spoken(engine, text="  ")


async def test_text_that_comes_as_a_flow_is_spoken_as_one(vits: Path) -> None:
    async def parts() -> AsyncIterator[EngineInput]:
        for piece in ("the quick ", "brown fox"):
            yield EngineInput(text=piece, values={"text": piece})

    async with started(vits) as engine:
        whole = await spoken(engine, {"seed": 1})
        _, last = await run_job(engine, make_job(sampling={"seed": 1}, parts=parts()))
    np.testing.assert_array_equal(last.outputs["audio"], whole)


@pytest.mark.parametrize(
    ("args", "final", "field"),
    [
        ({"task": "sing"}, None, "engine_args.task"),
        ({"task": "speak", "input": "codes"}, None, "engine_args.input"),
        ({"task": "transcribe", "chunk_frames": 5}, None, "engine_args.chunk_frames"),
        ({"task": "transcribe"}, "audio", "final_output_type"),
        ({}, "text", "final_output_type"),
    ],
)
def test_arguments_of_another_task_are_refused(args: dict[str, Any], final: str | None, field: str) -> None:
    stage = StageSpec(
        stage_id=0, name="voice", engine="transformers", model="m", engine_args=args, final_output=final is not None,
        final_output_type=final,
    )  # fmt: skip
    with pytest.raises(PipelineError) as caught:
        transformers_engine(stage)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("sampling", "param"),
    [({"prompt": "a <|endoftext|> b"}, "prompt"), ({"max_new_tokens": 10_000}, "max_new_tokens")],
)
async def test_transcription_is_refused_when_the_caller_is_at_fault(
    whisper: Path, sampling: dict[str, Any], param: str
) -> None:
    async with started(whisper, "transcribe") as engine:
        values = {"audio": np.zeros(1600, np.float32), "sample_rate": 16_000}
        with pytest.raises(EngineRejected) as caught:
            await run_job(engine, make_job(sampling=sampling, values=values))
    assert caught.value.param == param


@pytest.mark.parametrize("rate", [None, 0, "high", float("inf")])
async def test_sound_to_transcribe_is_refused_when_its_rate_is_none(whisper: Path, rate: object) -> None:
    async with started(whisper, "transcribe") as engine:
        with pytest.raises(EngineRejected) as caught:
            await run_job(engine, make_job(values={"audio": np.zeros(1600, np.float32), "sample_rate": rate}))
    assert caught.value.param == "audio"


async def test_end_of_a_long_prompt_counts_when_a_sound_is_transcribed(whisper: Path) -> None:
    async with started(whisper, "transcribe") as engine:
        values = {"audio": np.zeros(1600, np.float32), "sample_rate": 16_000}
        await run_job(engine, make_job(sampling={"prompt": "a b c " * 500, "max_new_tokens": 2}, values=values))


async def test_class_that_does_another_task_is_refused(vits: Path, whisper: Path, tmp_path: Path) -> None:
    for checkpoint, task in ((whisper, "speak"), (vits, "transcribe")):
        with pytest.raises(PipelineError, match="none of the classes"):
            async with started(checkpoint, task):
                pass
    with pytest.raises(CheckpointMissing):
        async with started(tmp_path):
            pass
