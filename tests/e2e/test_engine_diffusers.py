"""The diffusers engine on a tiny random Sana pipeline."""

from __future__ import annotations

import asyncio
import functools
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import numpy as np
import pytest
import pytest_asyncio
import torch
from msgspec.structs import replace
from PIL import Image

from omnibus.errors import CheckpointMissing, ConfigError, EngineDead, EngineError, EngineRejected, InvalidRequest
from omnibus.media import pictures
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.request import ImagePart, Message, TextPart
from omnibus.workers.engines.diffusers.batch_request import parse_request
from omnibus.workers.engines.diffusers.engine import DiffusersEngine
from omnibus.workers.engines.protocol import EngineStats, Finished, Job, Progress
from tests.support import tiny_checkpoints
from tests.support.jobs import make_bundle, make_job, run_job
from tests.support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]
SAMPLING = {"num_inference_steps": 4, "guidance_scale": 2.0, "size": "32x32"}
WIDTH = tiny_checkpoints.CONDITION_WIDTH


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_checkpoints.make_diffusion(tmp_path_factory.mktemp("dit"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(checkpoint: Path) -> AsyncIterator[DiffusersEngine]:
    engine = DiffusersEngine(make_stage(checkpoint))
    await engine.start()
    yield engine
    await engine.close()


def make_stage(checkpoint: Path, **engine_args: Any) -> StageSpec:
    # The window is long enough for jobs of one gather to meet on a busy machine.
    arguments = {"batch_window_ms": 100, **engine_args}
    return StageSpec(stage_id=1, name="dit", engine="diffusers", model=str(checkpoint), slots=4, engine_args=arguments)


def embeddings(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((length, WIDTH)).astype(np.float32)


def image_job(rid: str, seed: int, length: int = 5, **sampling: Any) -> Job:
    values = {"prompt_embeds": embeddings(length, seed), "negative_prompt_embeds": embeddings(3, 99)}
    return make_job(rid, {**SAMPLING, "seed": seed, **sampling}, values=values)


async def image_of(engine: DiffusersEngine, job: Job) -> np.ndarray:
    _, last = await run_job(engine, job)
    return last.outputs["image"]


async def test_image_is_that_of_the_pipeline(engine: DiffusersEngine, checkpoint: Path) -> None:
    pipeline = diffusers.SanaPipeline.from_pretrained(checkpoint, text_encoder=None, tokenizer=None)
    pipeline.set_progress_bar_config(disable=True)
    negative = np.zeros((5, WIDTH), np.float32)
    negative[:3] = embeddings(3, 99)
    expected = pipeline(
        prompt_embeds=torch.from_numpy(embeddings(5, 7))[None],
        prompt_attention_mask=torch.ones(1, 5, dtype=torch.int64),
        negative_prompt=None,
        negative_prompt_embeds=torch.from_numpy(negative)[None],
        negative_prompt_attention_mask=torch.tensor([[1, 1, 1, 0, 0]]),
        generator=torch.Generator().manual_seed(7),
        num_inference_steps=4,
        guidance_scale=2.0,
        height=32,
        width=32,
        use_resolution_binning=False,
        output_type="np",
    ).images

    image = await image_of(engine, image_job("one", 7))

    assert (image.shape, image.dtype) == ((1, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(image, (expected * 255).round().astype(np.uint8))


async def test_steps_are_reported_in_order(engine: DiffusersEngine) -> None:
    steps, _ = await run_job(engine, image_job("steps", 1))

    assert steps == [Progress(step=step, total=4) for step in (1, 2, 3, 4)]


async def test_previews_come_when_they_are_asked_for(engine: DiffusersEngine) -> None:
    steps, _ = await run_job(engine, image_job("previews", 1, previews=2))

    shown = {step.step: step.preview for step in steps if step.preview is not None}
    assert shown.keys() == {2}
    assert Image.open(io.BytesIO(shown[2])).size == (32, 32)


async def test_images_are_those_they_would_be_alone_when_batched(engine: DiffusersEngine) -> None:
    jobs = [image_job(f"batched-{seed}", seed, length=3 + seed) for seed in range(4)]
    alone = [await image_of(engine, job) for job in jobs]
    assert engine._model is not None
    batches, run = [], engine._model.run
    engine._model.run = lambda batch, on_step: batches.append(len(batch)) or run(batch, on_step)

    together = await asyncio.gather(*(image_of(engine, job) for job in jobs))
    engine._model.run = run

    assert batches == [4]
    for one, other in zip(alone, together, strict=True):
        # 3e-6 of the range may tip a pixel over to the next of 256 levels.
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
        assert (one == other).mean() > 0.99


async def test_members_of_a_bundle_share_a_batch_when_the_stage_has_one_slot(
    engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_stage", replace(engine._stage, slots=1))
    jobs = [image_job("bundle", seed, length=3 + seed) for seed in range(3)]
    alone = [await image_of(engine, job) for job in jobs]
    assert engine._model is not None
    batches, run = [], engine._model.run
    monkeypatch.setattr(engine._model, "run", lambda batch, on_step: batches.append(len(batch)) or run(batch, on_step))

    bundle = run_job(engine, make_bundle(jobs[0], negative=jobs[1], third=jobs[2]))
    (_, last), _ = await asyncio.gather(bundle, image_of(engine, image_job("other", 5)))

    assert sorted(batches) == [1, 3]
    together = last.outputs, last.companions["negative"], last.companions["third"]
    for one, outputs in zip(alone, together, strict=True):
        assert np.abs(one.astype(int) - outputs["image"].astype(int)).max() <= 1


async def test_rows_do_not_touch_each_other_when_batched(engine: DiffusersEngine, checkpoint: Path) -> None:
    model = engine._model
    assert model is not None
    jobs = [image_job(f"rows-{seed}", seed, length=3 + seed) for seed in range(4)]
    requests = [parse_request(job, model.shape) for job in jobs]
    floats: list[np.ndarray] = []
    postprocess = model._pipeline.image_processor.postprocess
    model._pipeline.image_processor.postprocess = lambda *a, **k: floats.append(postprocess(*a, **k)) or floats[-1]
    for request in requests:
        model.run([request], lambda *_: True)
    model.run(requests, lambda *_: True)
    model._pipeline.image_processor.postprocess = postprocess

    np.testing.assert_allclose(np.concatenate(floats[:4]), floats[4], atol=3e-6)


async def test_seeds_count_up_when_several_images_are_asked_for(engine: DiffusersEngine) -> None:
    values = {"prompt_embeds": embeddings(4), "negative_prompt_embeds": embeddings(3, 99)}
    two = await image_of(engine, make_job("two", {**SAMPLING, "seed": 5, "n": 2}, values=values))
    second = await image_of(engine, make_job("second", {**SAMPLING, "seed": 6}, values=values))

    assert two.shape == (2, 32, 32, 3)
    assert np.abs(two[1].astype(int) - second[0].astype(int)).max() <= 1
    assert (two[0] != two[1]).any()


async def test_sizes_do_not_mix_when_requests_differ(engine: DiffusersEngine) -> None:
    small, large = await asyncio.gather(
        image_of(engine, image_job("small", 1)), image_of(engine, image_job("large", 1, size="64x32"))
    )

    assert (small.shape, large.shape) == ((1, 32, 32, 3), (1, 32, 64, 3))


async def test_pipeline_serves_on_when_a_request_is_aborted_between_steps(engine: DiffusersEngine) -> None:
    before = await image_of(engine, image_job("calm", 3))
    seen = []
    async for item in engine.generate(image_job("aborted", 3, num_inference_steps=500)):
        seen.append(item)
        await engine.abort("aborted")

    assert len(seen) < 20
    assert seen[-1] == Finished(outputs={}, finish_reason="abort")
    np.testing.assert_array_equal(await image_of(engine, image_job("calm", 3)), before)
    assert engine.dead() is None


async def test_batch_goes_on_when_one_of_it_is_aborted(engine: DiffusersEngine) -> None:
    alone = await image_of(engine, image_job("stays", 2))

    async def leave() -> Finished:
        items = []
        async for item in engine.generate(image_job("leaves", 1)):
            items.append(item)
            await engine.abort("leaves")
        return items[-1]

    left, stayed = await asyncio.gather(leave(), image_of(engine, image_job("stays", 2)))

    assert left.finish_reason == "abort"
    assert np.abs(stayed.astype(int) - alone.astype(int)).max() <= 1


async def test_nothing_runs_any_more_when_the_consumer_leaves(engine: DiffusersEngine) -> None:
    generated = engine.generate(image_job("left", 1, num_inference_steps=1000))
    await anext(generated)
    assert engine.stats() == EngineStats(running=1)

    await generated.aclose()

    await eventually(lambda: not engine._batch, 5)
    assert engine.stats() == EngineStats()


@pytest.mark.parametrize(
    ("sampling", "values", "param"),
    [
        ({"sharpness": 3}, {}, "sharpness"),
        ({"generator": 3}, {}, "generator"),
        ({"num_inference_steps": 0}, {}, "num_inference_steps"),
        ({"num_inference_steps": "many"}, {}, "num_inference_steps"),
        ({"guidance_scale": True}, {}, "guidance_scale"),
        ({"size": "large"}, {}, "size"),
        ({"size": "99999x99999"}, {}, "width"),
        ({"size": "32000x32000"}, {}, "size"),
        ({"size": "33x32"}, {}, "size"),
        ({"n": 17}, {}, "n"),
        ({"seed": -1}, {}, "seed"),
        ({"previews": -1}, {}, "previews"),
        ({"sigmas": "abc"}, {}, "sigmas"),
        ({"sigmas": ["a"]}, {}, "sigmas"),
        ({"sigmas": [0.5] * 1001}, {}, "sigmas"),
        ({"timesteps": [5.5]}, {}, "timesteps"),
        ({"timesteps": [9, 5], "sigmas": [0.9, 0.5]}, {}, "timesteps"),
        ({"eta": "much"}, {}, "eta"),
        ({"clean_caption": 1}, {}, "clean_caption"),
        ({"max_sequence_length": "long"}, {}, "max_sequence_length"),
        ({"attention_kwargs": [1]}, {}, "attention_kwargs"),
        ({}, {"prompt_embeds": np.zeros((3, 4, 5), np.float32)}, "prompt_embeds"),
        ({}, {"prompt_attention_mask": np.ones(9, np.int64)}, "prompt_attention_mask"),
        ({}, {"depth": embeddings(3)}, "depth"),
        ({}, {"prompt_embeds": None}, "prompt_embeds"),
    ],
)
async def test_rejected_naming_the_field_when_the_request_is_wrong(engine, sampling, values, param) -> None:
    given = {"prompt_embeds": embeddings(4), "negative_prompt_embeds": embeddings(3), **values}
    with pytest.raises(EngineRejected) as caught:
        await run_job(engine, make_job("wrong", {**SAMPLING, **sampling}, values=given))

    assert caught.value.param == param


async def test_rejected_when_there_is_no_text_encoder(engine: DiffusersEngine) -> None:
    with pytest.raises(EngineRejected, match="prompt_embeds"):
        await run_job(engine, make_job(sampling=SAMPLING, text="a red circle"))


async def test_weights_come_back_when_woken_up(engine: DiffusersEngine) -> None:
    before = await image_of(engine, image_job("awake", 4))
    await engine.rpc("sleep", [], {})
    await engine.rpc("wake_up", [], {})

    np.testing.assert_array_equal(await image_of(engine, image_job("awake", 4)), before)
    with pytest.raises(InvalidRequest, match="dance"):
        await engine.rpc("dance", [], {})


async def test_checkpoint_missing_when_the_folder_holds_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match=r"model_index\.json"):
        await DiffusersEngine(make_stage(tmp_path)).start()


@pytest.mark.parametrize(
    ("name", "value"),
    [("dtype", "int3"), ("pipeline_class", "NoSuchPipeline"), ("leave_out", ["text_decoder"])],
)
async def test_pipeline_error_when_an_engine_argument_is_wrong(checkpoint: Path, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        await DiffusersEngine(make_stage(checkpoint, **{name: value})).start()


class Forgetful(diffusers.SanaPipeline):
    """A pipeline that at a guidance of 9 returns no pictures."""

    @functools.wraps(diffusers.SanaPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = super().__call__(*args, **kwargs)
        if kwargs["guidance_scale"] == 9:
            result.images = None
        return result


async def test_pipeline_serves_on_when_it_returned_something_odd(checkpoint: Path) -> None:
    engine = DiffusersEngine(make_stage(checkpoint, pipeline_class=f"{__name__}:Forgetful"))
    await engine.start()
    try:
        async with asyncio.timeout(20):
            with pytest.raises(EngineError, match="made neither"):
                await image_of(engine, image_job("odd", 1, guidance_scale=9.0))
            assert (await image_of(engine, image_job("good", 1))).shape == (1, 32, 32, 3)
    finally:
        await engine.close()


class Unsteady(diffusers.StableDiffusionImg2ImgPipeline):
    """A pipeline whose library fails once before it begins; afterwards its picture's size does not suit it."""

    errors: ClassVar[list[str]] = []

    @functools.wraps(diffusers.StableDiffusionImg2ImgPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.errors:
            raise RuntimeError(self.errors.pop(0))
        return super().__call__(*args, **kwargs)


async def test_passing_failure_is_no_refusal_when_the_request_has_a_file(tmp_path: Path) -> None:
    model = tiny_checkpoints.make_painter(tmp_path)
    engine = DiffusersEngine(make_stage(model, pipeline_class=f"{__name__}:Unsteady"))
    picture = ImagePart(data=pictures.encoded(np.zeros((16, 16, 3), np.uint8)))
    message = Message(role="user", content=(picture, TextPart(text="red square")))
    job = make_job("file", {"num_inference_steps": 2, "seed": 1, "eta": 0.5}, messages=(message,))
    await engine.start()
    try:
        for failure in ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", "can't start new thread"):
            Unsteady.errors.append(failure)
            with pytest.raises(EngineError, match=failure):
                await image_of(engine, job)
        assert (await image_of(engine, job)).shape == (1, 16, 16, 3)
        Unsteady.errors.append("The size of tensor a (9) must match the size of tensor b (4)")
        with pytest.raises(EngineRejected):
            await image_of(engine, job)
    finally:
        await engine.close()


class Choosy(diffusers.SanaPipeline):
    """Refuses a batch with large numbers in its embeddings."""

    @functools.wraps(diffusers.SanaPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (kwargs["prompt_embeds"] > 100).any():
            raise ValueError("too large")
        return super().__call__(*args, **kwargs)


async def test_requests_are_made_when_only_another_one_of_their_batch_is_refused(checkpoint: Path) -> None:
    engine = DiffusersEngine(make_stage(checkpoint, pipeline_class=f"{__name__}:Choosy", batch_window_ms=500))
    await engine.start()
    try:
        wrong = image_job("wrong", 1)
        wrong.engine_input.values["prompt_embeds"][:] = 1000
        refused, made = await asyncio.gather(
            run_job(engine, wrong), run_job(engine, image_job("good", 2)), return_exceptions=True
        )
    finally:
        await engine.close()
    assert isinstance(refused, EngineRejected)
    assert not isinstance(made, BaseException), made
    assert made[1].outputs["image"].shape == (1, 32, 32, 3)


async def test_waiting_requests_end_when_the_engine_closes(checkpoint: Path) -> None:
    engine = DiffusersEngine(make_stage(checkpoint, batch_window_ms=60_000))
    await engine.start()
    waiting = asyncio.ensure_future(run_job(engine, image_job("waiting", 1)))
    await eventually(lambda: engine.stats().waiting == 1)

    await engine.close()

    with pytest.raises(EngineDead):
        await waiting


async def test_prompts_are_encoded_when_the_pipeline_can(tmp_path: Path) -> None:
    engine = DiffusersEngine(
        make_stage(tiny_checkpoints.make_painter(tmp_path), pipeline_class="StableDiffusionPipeline")
    )
    await engine.start()
    sampling = {"num_inference_steps": 2, "guidance_scale": 3.0, "size": "16x16", "negative_prompt": "blue"}
    jobs = [make_job(prompt, {**sampling, "seed": seed}, text=prompt) for seed, prompt in enumerate(("red", "square"))]

    alone = [await image_of(engine, job) for job in jobs]
    together = await asyncio.gather(*(image_of(engine, job) for job in jobs))
    steps, _ = await run_job(engine, make_job("shown", {**sampling, "previews": 1}, text="red"))
    await engine.close()

    for one, other in zip(alone, together, strict=True):
        assert one.shape == (1, 16, 16, 3)
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
    assert [step.preview is not None for step in steps] == [True, False]
