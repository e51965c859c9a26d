"""The transformers engine on tiny random codecs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
import transformers
from safetensors.torch import load_file, save_file

from omnibus.errors import CheckpointMissing, ConfigError, EngineDead, EngineRejected, InvalidRequest
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.protocol import EngineInput, EngineStats
from omnibus.workers.engines.transformers.engine import TransformersEngine
from tests.support import tiny_checkpoints
from tests.support.jobs import make_job, run_job
from tests.support.waiting import eventually
from tools.omni_tiny.grading import grade_audio
from tools.omni_tiny.grammar import parse
from tools.omni_tiny.voice import HOP, SAMPLE_RATE, codes_of

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
    # transformers' codecs still use torch's old weight norm.
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
]
CODES = np.random.default_rng(0).integers(tiny_checkpoints.CODEBOOK, size=(tiny_checkpoints.CODEBOOKS, 20))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_checkpoints.make_codec(tmp_path_factory.mktemp("codec"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(checkpoint: Path) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(make_stage(checkpoint))
    await engine.start()
    yield engine
    await engine.close()


def make_stage(checkpoint: Path, **engine_args: Any) -> StageSpec:
    model = str(checkpoint)
    return StageSpec(stage_id=3, name="voice", engine="transformers", model=model, slots=4, engine_args=engine_args)


def expected_sound(checkpoint: Path, codes: np.ndarray) -> np.ndarray:
    model = transformers.DacModel.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        return model.decode(audio_codes=torch.from_numpy(codes)[None]).audio_values[0].numpy()


async def test_sound_is_that_of_the_model(engine: TransformersEngine, checkpoint: Path) -> None:
    before, last = await run_job(engine, make_job(values={"codes": CODES}))

    assert before == []
    sound = last.outputs["audio"]
    assert (sound.shape, sound.dtype) == ((20 * tiny_checkpoints.HOP,), np.float32)
    assert last.outputs["sample_rate"] == tiny_checkpoints.SAMPLE_RATE
    np.testing.assert_allclose(sound, expected_sound(checkpoint, CODES), atol=1e-6)


async def test_one_row_of_codes_may_be_flat(engine: TransformersEngine, checkpoint: Path) -> None:
    _, last = await run_job(engine, make_job(values={"codes": CODES[0].tolist()}))

    np.testing.assert_allclose(last.outputs["audio"], expected_sound(checkpoint, CODES[:1]), atol=1e-6)


async def test_each_gets_its_own_sound_when_four_run_at_once(engine: TransformersEngine, checkpoint: Path) -> None:
    clips = [CODES[:, : 5 * (place + 1)] for place in range(4)]

    answers = await asyncio.gather(*(run_job(engine, make_job(f"clip-{len(c)}", values={"codes": c})) for c in clips))

    for clip, (_, last) in zip(clips, answers, strict=True):
        np.testing.assert_allclose(last.outputs["audio"], expected_sound(checkpoint, clip), atol=1e-6)
    assert engine.stats() == EngineStats()


@pytest.mark.parametrize(
    ("values", "sampling", "param"),
    [
        ({"codes": [1, tiny_checkpoints.CODEBOOK]}, {}, "codes"),
        ({"codes": [-1]}, {}, "codes"),
        ({"codes": []}, {}, "codes"),
        ({"codes": [0.5]}, {}, "codes"),
        ({"codes": np.zeros((3, 4), np.int64)}, {}, "codes"),
        ({"codes": np.zeros((1, 2, 3), np.int64)}, {}, "codes"),
        ({"codes": [1] * 100_001}, {}, "codes"),
        ({}, {}, "codes"),
        ({"codes": [1], "mood": [1]}, {}, "mood"),
        ({"codes": [1]}, {"speed": 2}, "speed"),
    ],
)
async def test_rejected_naming_the_field_when_the_request_is_wrong(engine, values, sampling, param) -> None:
    with pytest.raises(EngineRejected) as caught:
        await run_job(engine, make_job(values=values, sampling=sampling))

    assert caught.value.param == param


async def test_job_ends_at_once_when_aborted(engine: TransformersEngine) -> None:
    long = np.tile(CODES, 4000)
    running = asyncio.ensure_future(run_job(engine, make_job("long", values={"codes": long})))
    waiting = asyncio.ensure_future(run_job(engine, make_job("next", values={"codes": long})))
    await eventually(lambda: engine.stats() == EngineStats(running=1, waiting=1))

    await engine.abort("next")

    assert (await waiting)[1].finish_reason == "abort"
    assert (await running)[1].outputs["audio"].shape == (80_000 * tiny_checkpoints.HOP,)


async def test_decoder_alone_is_enough_when_the_encoder_is_not_shipped(checkpoint: Path, tmp_path: Path) -> None:
    copy_checkpoint(checkpoint, tmp_path, lambda name: not name.startswith("encoder."))
    engine = TransformersEngine(make_stage(tmp_path))
    await engine.start()

    _, last = await run_job(engine, make_job(values={"codes": CODES}))
    await engine.close()

    np.testing.assert_allclose(last.outputs["audio"], expected_sound(checkpoint, CODES), atol=1e-6)


async def test_checkpoint_missing_when_a_part_of_the_decoder_is(checkpoint: Path, tmp_path: Path) -> None:
    copy_checkpoint(checkpoint, tmp_path, lambda name: not name.startswith("decoder.conv1"))
    with pytest.raises(CheckpointMissing, match=r"decoder\.conv1"):
        await TransformersEngine(make_stage(tmp_path)).start()


def copy_checkpoint(checkpoint: Path, to: Path, keep: Any) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if keep(name)}, to / "model.safetensors", {"format": "pt"}
    )
    (to / "config.json").write_bytes((checkpoint / "config.json").read_bytes())


async def test_vocoder_takes_features(tmp_path: Path) -> None:
    vocoder = tiny_checkpoints.make_vocoder(tmp_path)
    features = np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32)
    engine = TransformersEngine(make_stage(tmp_path, model_class="SpeechT5HifiGan", input="spectrogram"))
    await engine.start()

    _, last = await run_job(engine, make_job(values={"spectrogram": features}))
    await engine.close()

    with torch.no_grad():
        expected = vocoder(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(last.outputs["audio"], expected, atol=1e-6)
    assert last.outputs["sample_rate"] == 16000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_class", "NoSuchModel"),
        ("method", "sing"),
        ("chunk_frames", 0),
        ("context_frames", "1"),
        ("max_batch", 0),
    ],
)
async def test_pipeline_error_when_an_engine_argument_is_wrong(checkpoint: Path, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        await TransformersEngine(make_stage(checkpoint, **{name: value})).start()


async def test_no_service_when_closed_and_no_control_methods(checkpoint: Path) -> None:
    engine = TransformersEngine(make_stage(checkpoint))
    await engine.start()
    with pytest.raises(InvalidRequest, match="dance"):
        await engine.rpc("dance", [], {})
    await engine.close()
    await engine.close()

    with pytest.raises(EngineDead):
        await run_job(engine, make_job(values={"codes": CODES}))


# In parts

OMNI_TINY = "package:omnibus.omni_tiny/checkpoints/code2wav"
SPOKEN = codes_of(parse("draw a red circle left of a blue square").symbols)


async def given(*parts: Any) -> AsyncGenerator[EngineInput, None]:
    for codes in parts:
        yield EngineInput(values={"codes": codes})


def off_by(sound: np.ndarray, expected: np.ndarray) -> float:
    """How much of the energy of a sound is wrong."""
    assert sound.shape == expected.shape
    return float(np.linalg.norm(sound - expected) / np.linalg.norm(expected))


@asynccontextmanager
async def started(stage: StageSpec) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(stage)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


@pytest.mark.parametrize(("frames", "at_once"), [(10, 1), (10, 7), (10, 60), (7, 1)])
async def test_chunks_make_the_whole_sound_when_omni_tinys_codes_come_while_they_are_made(
    frames: int, at_once: int
) -> None:
    settings = {"chunk_frames": frames, "context_frames": 1}
    stage = StageSpec(stage_id=3, name="code2wav", engine="transformers", model=OMNI_TINY, engine_args=settings)
    async with started(stage) as engine:
        _, whole = await run_job(engine, make_job(values={"codes": SPOKEN}))
        parts = [SPOKEN[start : start + at_once] for start in range(0, len(SPOKEN), at_once)]
        chunks, last = await run_job(engine, make_job(parts=given(*parts)))

    pieces = [chunk.outputs["audio"] for chunk in chunks]
    assert len(pieces) == -(-len(SPOKEN) // frames)
    assert {len(piece) for piece in pieces[:-1]} == {frames * HOP}
    np.testing.assert_array_equal(np.concatenate(pieces), last.outputs["audio"])
    assert off_by(last.outputs["audio"], whole.outputs["audio"]) < 0.01
    assert grade_audio("draw a red circle left of a blue square", (last.outputs["audio"], SAMPLE_RATE))


async def test_context_is_what_makes_the_chunks_right() -> None:
    stage = StageSpec(
        stage_id=3, name="code2wav", engine="transformers", model=OMNI_TINY, engine_args={"chunk_frames": 7}
    )
    async with started(stage) as engine:
        _, whole = await run_job(engine, make_job(values={"codes": SPOKEN}))
        _, last = await run_job(engine, make_job(parts=given(SPOKEN)))
    assert off_by(last.outputs["audio"], whole.outputs["audio"]) > 0.01


async def test_chunks_are_in_their_places_when_a_codec_loses_samples_at_the_end(tmp_path: Path) -> None:
    """An odd stride does."""
    config = transformers.DacConfig(
        encoder_hidden_size=4, downsampling_ratios=[2, 5], decoder_hidden_size=16, upsampling_ratios=[5, 2],
        n_codebooks=2, codebook_size=64, codebook_dim=4, hop_length=10, sampling_rate=8000,
    )  # fmt: skip
    torch.manual_seed(3)
    transformers.DacModel(config).save_pretrained(tmp_path)
    codes = np.random.default_rng(4).integers(64, size=(2, 65))
    async with started(make_stage(tmp_path, chunk_frames=20, context_frames=8)) as engine:
        _, whole = await run_job(engine, make_job(values={"codes": codes}))
        chunks, last = await run_job(engine, make_job(parts=given(codes[:, :33], codes[:, 33:])))

    assert len(whole.outputs["audio"]) < 650
    assert len(chunks) == 3, "what is too short for a context of its own is in the last one"
    np.testing.assert_allclose(last.outputs["audio"], whole.outputs["audio"], atol=1e-4)


async def test_a_vocoders_features_come_in_parts_too(tmp_path: Path) -> None:
    torch.manual_seed(7)
    config = transformers.SpeechT5HifiGanConfig(model_in_dim=8, upsample_initial_channel=16, sampling_rate=16000)
    transformers.SpeechT5HifiGan(config).save_pretrained(tmp_path)
    features = np.random.default_rng(1).standard_normal((60, 8)).astype(np.float32)
    stage = make_stage(tmp_path, model_class="SpeechT5HifiGan", input="spectrogram", chunk_frames=20, context_frames=16)

    async def parts() -> AsyncGenerator[EngineInput, None]:
        for start in range(0, 60, 6):
            yield EngineInput(values={"spectrogram": features[start : start + 6]})

    async with started(stage) as engine:
        _, whole = await run_job(engine, make_job(values={"spectrogram": features}))
        chunks, last = await run_job(engine, make_job(parts=parts()))
    assert len(chunks) == 3
    assert off_by(last.outputs["audio"], whole.outputs["audio"]) < 0.01


async def test_a_sound_leaves_in_chunks_when_its_codes_are_whole_and_its_caller_streams(checkpoint: Path) -> None:
    async with started(make_stage(checkpoint, chunk_frames=5, context_frames=4)) as engine:
        streamed, _ = await run_job(engine, make_job(values={"codes": CODES}, stream=True))
        whole, last = await run_job(engine, make_job(values={"codes": CODES}))
    assert len(streamed) == 4
    assert whole == []
    np.testing.assert_allclose(last.outputs["audio"], expected_sound(checkpoint, CODES), atol=1e-6)


async def test_all_is_one_chunk_when_the_stage_names_no_size(engine: TransformersEngine, checkpoint: Path) -> None:
    chunks, last = await run_job(engine, make_job(parts=given(CODES[:, :5], CODES[:, 5:])))
    assert len(chunks) == 1
    np.testing.assert_allclose(last.outputs["audio"], expected_sound(checkpoint, CODES), atol=1e-6)


async def test_each_chunk_leaves_when_it_is_decoded(checkpoint: Path) -> None:
    """The next frames are asked for only when the sound of those before has left."""
    asked: list[int] = []

    async def slow() -> AsyncGenerator[EngineInput, None]:
        for start in (0, 5, 10):
            asked.append(start)
            yield EngineInput(values={"codes": CODES[:, start : start + 5]})

    async with (
        started(make_stage(checkpoint, chunk_frames=5)) as engine,
        aclosing(engine.generate(make_job(parts=slow()))) as items,
    ):
        seen = [(type(item).__name__, list(asked)) async for item in items]

    assert seen == [("Chunk", [0]), ("Chunk", [0, 5]), ("Chunk", [0, 5, 10]), ("Finished", [0, 5, 10])]


async def test_job_ends_at_once_when_aborted_while_it_waits_for_frames(checkpoint: Path) -> None:
    asked = asyncio.Event()

    async def never() -> AsyncGenerator[EngineInput, None]:
        yield EngineInput(values={"codes": CODES})
        asked.set()
        await asyncio.Event().wait()

    async with started(make_stage(checkpoint, chunk_frames=20)) as engine:
        running = asyncio.ensure_future(run_job(engine, make_job("waits", parts=never())))
        await asyncio.wait_for(asked.wait(), 10.0)
        await engine.abort("waits")

        chunks, last = await asyncio.wait_for(running, 10.0)
        assert (len(chunks), last.finish_reason, last.outputs) == (1, "abort", {})
        assert engine.stats() == EngineStats()


@pytest.mark.parametrize("parts", [[], [[]], [[1], [0.5]], [[1] * 60_000, [1] * 60_000]])
async def test_rejected_when_parts_are_none_wrong_or_too_many(engine: TransformersEngine, parts: list[Any]) -> None:
    with pytest.raises(EngineRejected) as caught:
        await run_job(engine, make_job(parts=given(*parts)))

    assert caught.value.param == "codes"


async def test_rejected_as_soon_as_parts_are_too_many_when_they_do_not_end(engine: TransformersEngine) -> None:
    async def endless() -> AsyncGenerator[EngineInput, None]:
        while True:
            yield EngineInput(values={"codes": [1] * 60_000})

    with pytest.raises(EngineRejected, match="120000 frames"):
        await asyncio.wait_for(run_job(engine, make_job(parts=endless())), 10.0)
