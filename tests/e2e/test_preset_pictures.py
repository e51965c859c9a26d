"""The presets of one diffusion stage, on tiny random checkpoints of their classes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omnibus.broker.connection import Connection
from tests.support import tiny_presets
from tests.support.flow import serving
from tests.support.preset import FEW_STEPS, START_WAIT, ask, tiny

pytestmark = [
    pytest.mark.e2e,
    # diffusers and torch use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
PRESETS = {
    "stable-diffusion-3": ("sd3", tiny_presets.make_stable_diffusion_3),
    "flux": ("flux", tiny_presets.make_flux),
}


@pytest.mark.parametrize("preset", PRESETS)
async def test_preset_draws_what_was_asked_for(
    connection: Connection, pipeline: str, tmp_path: Path, preset: str
) -> None:
    torch.set_num_threads(1)
    stage, make = PRESETS[preset]
    spec = tiny(preset, pipeline, {stage: make(tmp_path)})
    async with serving(connection, spec, ready=START_WAIT) as producer:
        asked = {stage: {**FEW_STEPS, "n": 2}}
        first, again, other = [
            pictures(await ask(producer, spec, prompt, asked)) for prompt in ("a cat", "a cat", "two dogs in snow")
        ]

    assert [picture.shape for picture in first] == [(32, 32, 3)] * 2
    assert all(np.array_equal(one, same) for one, same in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1]), "each picture has a seed of its own"
    assert not np.array_equal(first[0], other[0]), "the prompt reached the model"


def pictures(result) -> list[np.ndarray]:
    (output,) = result.outputs
    assert (output.modality, output.media_type) == ("image", "image/png")
    return [np.asarray(Image.open(io.BytesIO(item))) for item in output.items]
