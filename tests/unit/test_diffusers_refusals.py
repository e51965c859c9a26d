"""Which parameter a refusal of a diffusion pipeline names."""

from __future__ import annotations

from typing import Any

import pytest

from omnibus.workers.engines.diffusers.batch_request import PipelineRequest, blamed

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("message", "shared", "lacking", "param"),
    [
        ("`height` and `width` have to be divisible by 8", {"height": 17, "width": 15}, None, "size"),
        ("`height` and `width` have to be divisible by 8", {"eta": 0.5, "height": 17, "width": 15}, None, "size"),
        ("eta is in [0, 1]", {"clip_skip": 1, "eta": 5.0}, None, "eta"),
        ("does not work", {"num_inference_steps": 2, "clip_skip": 50}, None, "clip_skip"),
        ("does not work", {"num_inference_steps": 2}, None, None),
        ("'NoneType' object is not subscriptable", {"eta": 0.5}, "mask_image", "mask_image"),
        (
            "Input is in incorrect format. Currently, we only support <class 'torch.Tensor'>",
            {},
            "mask_image",
            "mask_image",
        ),
        ("does not work", {}, "mask_image", None),
    ],
)
def test_an_error_of_the_pipeline_is_about_what_it_names(
    message: str, shared: dict[str, Any], lacking: str | None, param: str | None
) -> None:
    assert blamed(message, PipelineRequest(seeds=(1,), shared=shared), lacking) == param
