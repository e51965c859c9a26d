"""The nodes of `examples/comfyui`, imported as ComfyUI imports a folder of nodes, and run against a real server."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import inspect
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omnibus.broker.connection import Connection
from omnibus.media import pictures
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from tests.support import tiny_checkpoints
from tests.support.diffusers_classes import mask, picture
from tests.support.front import front
from tools.omni_tiny.grading import grade_audio, grade_image

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
FOLDER = Path(__file__).parents[3] / "examples" / "comfyui"
SHAPES = "a red circle left of a blue square"
SOCKETS = {"IMAGE", "MASK", "AUDIO", "STRING", "INT", "FLOAT"}
"""Types that ComfyUI has by itself."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[ModuleType]:
    """The folder as a package under a name of its own, as it is loaded from `custom_nodes`."""
    spec = importlib.util.spec_from_file_location("comfyui_omnibus", FOLDER / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["comfyui_omnibus"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.startswith("comfyui_omnibus")]:
        del sys.modules[name]


def run(nodes: ModuleType, name: str, **given: Any) -> Any:
    """The first output of a node: its widgets' defaults, and what is given."""
    kind = nodes.NODE_CLASS_MAPPINGS[name]
    widgets = {
        key: field[1]["default"]
        for key, field in kind.INPUT_TYPES()["required"].items()
        if "default" in (field[1:] or ({},))[0]
    }
    (output,) = getattr(kind(), kind.FUNCTION)(**{**widgets, **given})
    return output


def test_nodes_declare_what_comfyui_asks_of_them(nodes: ModuleType) -> None:
    assert set(nodes.NODE_DISPLAY_NAME_MAPPINGS) == set(nodes.NODE_CLASS_MAPPINGS)
    for kind in nodes.NODE_CLASS_MAPPINGS.values():
        fields = {name: field for group in kind.INPUT_TYPES().values() for name, field in group.items()}
        assert {field[0] for field in fields.values()} <= SOCKETS
        assert set(kind.RETURN_TYPES) <= SOCKETS
        assert kind.CATEGORY == "Omnibus"
        assert set(inspect.signature(getattr(kind, kind.FUNCTION)).parameters) - {"self"} == set(fields)


def test_pictures_are_painted_and_follow_their_seed(nodes: ModuleType, url: str) -> None:
    made = run(nodes, "OmnibusTextToImage", url=url, prompt=SHAPES, width=64, height=64, batch_size=2, seed=7)
    again = run(nodes, "OmnibusTextToImage", url=url, prompt=SHAPES, batch_size=2, seed=7, steps=12)
    assert made.shape == (2, 64, 64, 3)
    assert (made.dtype, float(made.max()) <= 1) == (torch.float32, True)
    assert grade_image(SHAPES, (made[0].numpy() * 255).astype(np.uint8))
    torch.testing.assert_close(made, again)


def test_text_is_spoken(nodes: ModuleType, url: str) -> None:
    sound = run(nodes, "OmnibusSpeech", url=url, text=SHAPES)
    assert sound["waveform"].shape[:2] == (1, 1)
    assert grade_audio(SHAPES, (sound["waveform"][0, 0].numpy(), sound["sample_rate"]))


async def test_picture_is_edited_where_the_mask_is(
    nodes: ModuleType, connection: Connection, pipeline: str, tmp_path: Path
) -> None:
    stage = StageSpec(
        stage_id=0, name="s", engine="diffusers", model=str(tiny_checkpoints.make_painter(tmp_path)), slots=4, final_output=True,
        engine_args={"pipeline_class": "StableDiffusionInpaintPipeline"}, final_output_type="image",
        default_sampling_params={"num_inference_steps": 2, "guidance_scale": 3.0},
    )  # fmt: skip
    image = torch.from_numpy(picture(16).astype(np.float32) / 255)[None]
    area = torch.from_numpy(mask(16).astype(np.float32) / 255)[None]
    async with front(connection, PipelineSpec(name=pipeline, deadline=60.0, stages=(stage,))) as door:
        asked = {"url": f"{door.server.url}/v1", "model": pipeline, "image": image, "prompt": "a red square", "seed": 5}
        edited = await asyncio.to_thread(run, nodes, "OmnibusImageEdit", **asked, mask=area, strength=1.0)
        by_hand = await door.openai.images.edit(
            model=pipeline, image=as_png(image), mask=as_png(area), prompt="a red square", size="16x16",
            extra_body={"seed": 5, "strength": 1.0},
        )  # fmt: skip
    assert edited.shape == (1, 16, 16, 3)
    np.testing.assert_array_equal(
        (edited[0].numpy() * 255).round().astype(np.uint8), of_base64(by_hand.data[0].b64_json)
    )


def as_png(tensor: torch.Tensor) -> bytes:
    return pictures.encoded((tensor[0].numpy() * 255).round().astype(np.uint8))


def of_base64(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
