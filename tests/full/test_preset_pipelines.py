"""The presets with a language model, on tiny random checkpoints of their classes, whole: broker, orchestrator, replicas."""

from __future__ import annotations

import gc
import io
from collections.abc import Iterator
from pathlib import Path

import diffusers
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from omnibus.broker.connection import Connection
from omnibus.presets.input_processors import QWEN_IMAGE_TEMPLATE
from tests.support import tiny_presets
from tests.support.flow import serving
from tests.support.preset import FEW_STEPS, START_WAIT, ask, tiny

pytestmark = [
    pytest.mark.e2e,
    # vLLM, torch and diffusers use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]
GREEDY = {"temperature": 0.0, "ignore_eos": True}
PROMPT = "a red cat on a blue mat"
SAMPLES_A_CODE = 320
CLOSE = 1
"""Difference, of 255, that two ways of computing the same may have. Another prompt makes several times that."""


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    gc.collect()  # while the filters above hold: vLLM leaves a ZeroMQ context to the collector


async def test_qwen3_answers(connection: Connection, pipeline: str, tmp_path: Path) -> None:
    spec = tiny("qwen3", pipeline, {"llm": tiny_presets.make_qwen3(tmp_path)})
    async with serving(connection, spec, ready=START_WAIT) as producer:
        result = await ask(producer, spec, PROMPT, {"llm": {**GREEDY, "max_tokens": 12}})

    (output,) = result.outputs
    assert output.modality == "text"
    assert output.text
    assert (output.usage.prompt_tokens, output.usage.completion_tokens) == (len(PROMPT), 12)


async def test_rewritten_prompt_is_what_qwen_image_draws(connection: Connection, pipeline: str, tmp_path: Path) -> None:
    reference = tiny_presets.make_qwen_image(tmp_path / "painter")
    models = {"rewriter": tiny_presets.make_qwen3(tmp_path / "rewriter"), "painter": tmp_path / "painter"}
    spec = tiny("qwen-image-rewritten", pipeline, models)
    async with serving(connection, spec, ready=START_WAIT) as producer:
        sampling = {"rewriter": {**GREEDY, "max_tokens": 16}, "painter": FEW_STEPS}
        result = await ask(producer, spec, PROMPT, sampling)

    text, image = result.outputs
    expected = drawn(reference, text.text, true_cfg_scale=4.0, negative_prompt=" ")
    assert_same_picture(image.items[0], expected)


async def test_picture_is_that_of_qwen_image_when_its_encoder_is_a_stage(
    connection: Connection, pipeline: str, tmp_path: Path
) -> None:
    reference = tiny_presets.make_qwen_image(tmp_path / "painter")
    encoder = tiny_presets.make_text_half(tmp_path / "encoder", reference.text_encoder)
    spec = tiny("qwen-image-encoder", pipeline, {"encoder": encoder, "painter": tmp_path / "painter"})
    async with serving(connection, spec, ready=START_WAIT) as producer:
        result = await ask(producer, spec, PROMPT, {"painter": FEW_STEPS})
        other = await ask(producer, spec, "two dogs", {"painter": FEW_STEPS})
        against = {"painter": {**FEW_STEPS, "negative_prompt": "two dogs that run, and a cat"}}
        guided = await ask(producer, spec, PROMPT, against)

    (red,), (dogs,), (no_dogs,) = (one.outputs[0].items for one in (result, other, guided))
    assert_same_picture(red, drawn(reference, PROMPT, true_cfg_scale=4.0, negative_prompt=" "))
    wanted = drawn(reference, PROMPT, true_cfg_scale=4.0, negative_prompt=against["painter"]["negative_prompt"])
    assert_same_picture(no_dogs, wanted)
    assert np.abs(pixels(red) - pixels(no_dogs)).max() > 4 * CLOSE, "the negative prompt did not reach the picture"
    assert np.abs(pixels(red) - pixels(dogs)).max() > 4 * CLOSE, "the prompt did not reach the picture"
    assert reference.prompt_template_encode == QWEN_IMAGE_TEMPLATE


async def test_llasa_speaks_through_its_codec(connection: Connection, pipeline: str, tmp_path: Path) -> None:
    models = {
        "llasa": tiny_presets.make_llasa(tmp_path / "llasa"),
        "codec": tiny_presets.make_xcodec2(tmp_path / "codec"),
    }
    spec = tiny("llasa", pipeline, models)
    # Random weights babble: they are held to speech tokens.
    sampling = {**GREEDY, "max_tokens": 20, "allowed_token_ids": tiny_presets.speech_token_ids(models["llasa"])}
    async with serving(connection, spec, ready=START_WAIT) as producer:
        result = await ask(producer, spec, "read me aloud", {"llasa": sampling})

    (output,) = result.outputs
    assert (output.modality, output.media_type) == ("audio", "audio/wav")
    samples, rate = soundfile.read(io.BytesIO(output.items[0]))
    assert rate == 16_000
    assert samples.shape == (20 * SAMPLES_A_CODE,)


def drawn(reference: diffusers.QwenImagePipeline, prompt: str, **more: object) -> np.ndarray:
    """Draw with diffusers alone, with the encoder that the pipeline brings."""
    reference.set_progress_bar_config(disable=True)
    size = {name: FEW_STEPS[name] for name in ("num_inference_steps", "height", "width")}
    generator = [torch.Generator().manual_seed(FEW_STEPS["seed"])]
    image = reference(prompt, generator=generator, output_type="np", **size, **more).images[0]
    return (image * 255).round().astype(np.uint8)


def assert_same_picture(png: bytes, expected: np.ndarray) -> None:
    picture = pixels(png)
    assert picture.shape == expected.shape
    assert np.abs(picture - expected).max() <= CLOSE, "not the picture of the same prompt and seed"


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)
