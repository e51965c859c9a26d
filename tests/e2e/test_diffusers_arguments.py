"""Arguments by which diffusers makes a pipeline fit, or faster: all that run on CPU, and names that diffusers does not have."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from omnibus.errors import ConfigError, EngineRejected, InvalidRequest
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.diffusers.engine import DiffusersEngine
from omnibus.workers.engines.protocol import Finished, Progress
from tests.support import tiny_pipelines, tiny_presets
from tests.support.diffusers_classes import WIDTH, noise
from tests.support.jobs import make_job, run_job

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.asyncio,
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
ENCODERS = ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
EMBEDS = {"prompt_embeds": noise(6, WIDTH), "pooled_prompt_embeds": noise(WIDTH, seed=2)}
SAMPLING = {"num_inference_steps": 4, "size": "32x32", "seed": 5}


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_presets.make_flux(tmp_path_factory.mktemp("flux"))


@asynccontextmanager
async def serving(model: Path, **arguments: Any) -> AsyncIterator[DiffusersEngine]:
    arguments = {"leave_out": ENCODERS, "pipeline_class": "FluxPipeline", **arguments}
    stage = StageSpec(stage_id=0, name="s", engine="diffusers", model=str(model), slots=8, engine_args=arguments)
    engine = DiffusersEngine(stage)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def painted(engine: DiffusersEngine, lora: str | None = None, **sampling: Any) -> np.ndarray:
    _, last = await run_job(engine, make_job("r", {**SAMPLING, **sampling}, values=EMBEDS, lora=lora))
    image: np.ndarray = last.outputs["image"]
    return image


async def painted_by(model: Path, **arguments: Any) -> np.ndarray:
    async with serving(model, **arguments) as engine:
        return await painted(engine)


def directly(model: Path, prepare: Any = lambda pipeline: pipeline) -> np.ndarray:
    pipeline = diffusers.FluxPipeline.from_pretrained(
        model, **dict.fromkeys([*ENCODERS, "image_encoder", "feature_extractor"])
    )
    pipeline.set_progress_bar_config(disable=True)
    prepare(pipeline)
    tensors = {name: torch.from_numpy(array)[None] for name, array in EMBEDS.items()}
    with torch.inference_mode():
        images = pipeline(
            **tensors,
            num_inference_steps=4,
            height=32,
            width=32,
            generator=torch.Generator().manual_seed(5),
            output_type="np",
        ).images
    return (images * 255).round().astype(np.uint8)


async def test_scheduler_is_the_one_that_the_stage_names(flux: Path) -> None:
    def prepare(pipeline: Any) -> None:
        pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, shift=5.0)

    made = await painted_by(flux, scheduler={"type": "FlowMatchEulerDiscreteScheduler", "shift": 5.0})

    np.testing.assert_array_equal(made, directly(flux, prepare))
    assert (made != directly(flux)).any()


async def test_cache_is_the_one_that_the_stage_names(flux: Path) -> None:
    def prepare(pipeline: Any) -> None:
        pipeline.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=10.0))

    made = await painted_by(flux, cache={"type": "FirstBlockCacheConfig", "threshold": 10.0})

    np.testing.assert_array_equal(made, directly(flux, prepare))
    assert (made != directly(flux)).any()


async def test_cache_keeps_nothing_of_a_request_that_was_aborted(flux: Path) -> None:
    async with serving(flux, cache={"type": "FirstBlockCacheConfig", "threshold": 10.0}) as engine:
        alone = await painted(engine)
        async with aclosing(engine.generate(make_job("left", {**SAMPLING, "seed": 6}, values=EMBEDS))) as items:
            async for _ in items:
                break
        np.testing.assert_array_equal(await painted(engine), alone)


@pytest.mark.parametrize(
    "arguments",
    [
        {"attention_backend": "_native_math"},
        {"vae_tiling": True, "vae_slicing": True},
        {"dtype": {"default": "float32"}},
    ],
)
async def test_picture_is_the_same_when_it_is_only_computed_otherwise(flux: Path, arguments: dict[str, Any]) -> None:
    made = await painted_by(flux, **arguments)
    assert np.abs(made.astype(int) - directly(flux).astype(int)).max() <= 1


async def test_dtype_is_one_for_each_component(flux: Path) -> None:
    async with serving(flux, dtype={"transformer": "bfloat16", "default": "float32"}) as engine:
        assert engine._model is not None
        parts = engine._model._pipeline
        assert (parts.transformer.dtype, parts.vae.dtype) == (torch.bfloat16, torch.float32)


async def test_denoiser_is_compiled_when_the_stage_says_so(flux: Path) -> None:
    made = await painted_by(flux, compile={"regional": True, "backend": "eager"})
    assert np.abs(made.astype(int) - directly(flux).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheduler": "FlowMatchEulerDiscretScheduler"}, "did you mean FlowMatchEulerDiscreteScheduler"),
        ({"scheduler": {"type": "DDIMScheduler", "shft": 1}}, r"scheduler\.shft"),
        ({"cache": "FirstBlocCacheConfig"}, "did you mean FirstBlockCacheConfig"),
        ({"cache": {"type": "FirstBlockCacheConfig", "treshold": 1}}, "did you mean threshold"),
        ({"attention_backend": "nativ"}, "did you mean native"),
        ({"offload": "modell"}, "did you mean model"),
        ({"offload": "model"}, "no GPU"),
        ({"device_map": "ballanced"}, "did you mean balanced"),
        ({"device_map": "balanced", "offload": "model"}, "not both"),
        ({"quantization_config": {"quant_backend": "bitsandbytes_4bits"}}, "did you mean bitsandbytes_4bit"),
        ({"quantization_config": {"backend": "quanto"}}, "did you mean quant_backend"),
        ({"compile": {"mod": "x"}}, "did you mean mode"),
        ({"dtype": {"transformer": "float31"}}, r"dtype\.transformer"),
        ({"lora_modules": {"ink": "/nowhere"}}, "nowhere"),
    ],
)
async def test_stage_does_not_start_and_says_what_was_meant_when_a_name_is_wrong(
    flux: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        async with serving(flux, **arguments):
            pass


def save_adapter(folder: Path, model: Path, seed: int) -> Path:
    """A LoRA adapter of the transformer with random weights."""
    torch.manual_seed(seed)
    transformer = diffusers.FluxTransformer2DModel.from_pretrained(model, subfolder="transformer")
    transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    for name, weight in transformer.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=1.0)
    diffusers.FluxPipeline.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(transformer))
    return folder


async def test_adapter_is_the_one_that_the_request_names(flux: Path, tmp_path: Path) -> None:
    ink, oil = (save_adapter(tmp_path / name, flux, seed) for seed, name in enumerate(("ink", "oil")))

    def with_ink(scale: float) -> np.ndarray:
        def prepare(pipeline: Any) -> None:
            pipeline.load_lora_weights(str(ink), adapter_name="ink")
            pipeline.set_adapters(["ink"], [scale])

        return directly(flux, prepare)

    async with serving(flux, lora_modules={"ink": str(ink), "oil": str(oil)}) as engine:
        plain = await painted(engine)
        inked, soft = await painted(engine, "ink"), await painted(engine, "ink", lora_scale=0.3)
        oiled, again = await painted(engine, "oil"), await painted(engine)
        with pytest.raises(EngineRejected) as caught:
            await painted(engine, lora_scale=0.3)

    np.testing.assert_array_equal(plain, directly(flux))
    np.testing.assert_array_equal(again, plain)
    np.testing.assert_array_equal(inked, with_ink(1.0))
    np.testing.assert_array_equal(soft, with_ink(0.3))
    assert len({made.tobytes() for made in (plain, inked, soft, oiled)}) == 4
    assert caught.value.param == "lora_scale"


async def test_class_without_a_callback_stops_at_a_step_and_serves_on(tmp_path: Path) -> None:
    model = tiny_pipelines.make_hunyuan_video15(tmp_path)
    values = {"prompt_embeds": noise(6, WIDTH), "prompt_embeds_2": noise(4, WIDTH, seed=1)}
    sampling = {"size": "16x16", "num_frames": 5, "seed": 1}
    async with serving(model, leave_out=[], pipeline_class="HunyuanVideo15Pipeline") as engine:
        seen = []
        async for item in engine.generate(make_job("long", {**sampling, "num_inference_steps": 900}, values=values)):
            seen.append(item)
            await engine.abort("long")
        steps, last = await run_job(engine, make_job("next", {**sampling, "num_inference_steps": 2}, values=values))

    assert len(seen) < 100
    assert seen[-1] == Finished(outputs={}, finish_reason="abort")
    assert steps == [Progress(step=1, total=2), Progress(step=2, total=2)]
    assert last.outputs["video"].shape == (1, 5, 16, 16, 3)


async def test_results_of_one_request_are_made_within_the_budget(flux: Path) -> None:
    async with serving(flux, batch_pixels=2 * 32 * 32) as engine:
        assert engine._model is not None
        calls, model = list[int](), engine._model
        plain = model._call
        model._call = lambda rows, on_step: calls.append(len(rows)) or plain(rows, on_step)  # type: ignore[method-assign]
        items, last = await run_job(engine, make_job("five", {**SAMPLING, "n": 5}, values=EMBEDS))
        second = await painted(engine, seed=6)

    assert calls == [2, 2, 1, 1]
    assert last.outputs["image"].shape == (5, 32, 32, 3)
    assert np.abs(last.outputs["image"][1].astype(int) - second[0].astype(int)).max() <= 1
    assert items == [Progress(step=step, total=12) for step in range(1, 13)]


async def test_stage_cannot_sleep_when_diffusers_places_its_weights(flux: Path) -> None:
    async with serving(flux, device_map="cpu") as engine:
        assert (await painted(engine)).shape == (1, 32, 32, 3)
        with pytest.raises(InvalidRequest, match="cannot sleep"):
            await engine.rpc("sleep", [], {})
