"""Pictures on a GPU: what diffusers offers to make a pipeline fit, or faster, changes none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnibus.errors import EngineError
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.diffusers.engine import DiffusersEngine
from tests.support.jobs import make_job, run_job
from tools import random_checkpoints

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is false here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
SAMPLING = {"num_inference_steps": 4, "guidance_scale": 2.0, "seed": 5}


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painter")
    random_checkpoints.make_painter(folder, random_checkpoints.PainterSize(channels=(32, 64), latents=16))
    return folder


async def started(model: Path, **arguments: Any) -> DiffusersEngine:
    stage = StageSpec(stage_id=0, name="s", engine="diffusers", model=str(model), slots=8, engine_args=arguments)
    engine = DiffusersEngine(stage)
    await engine.start()
    return engine


async def painted(engine: DiffusersEngine, side: int = 32) -> np.ndarray:
    _, last = await run_job(engine, make_job("r", {**SAMPLING, "size": f"{side}x{side}"}, text="abc"))
    image: np.ndarray = last.outputs["image"]
    return image


async def painted_by(model: Path, **arguments: Any) -> np.ndarray:
    engine = await started(model, **arguments)
    try:
        return await painted(engine)
    finally:
        await engine.close()


@pytest.mark.parametrize(
    "arguments",
    [
        {"offload": "model"},
        {"offload": "sequential"},
        {"offload": "group"},
        {"device_map": "cuda"},
        {"device_map": "balanced"},
        {"device": "cpu"},
        {"compile": {"regional": True}},
    ],
    ids=str,
)
async def test_picture_is_the_same_when_it_is_computed_elsewhere(painter: Path, arguments: dict[str, Any]) -> None:
    expected = await painted_by(painter, dtype="float32")
    made = await painted_by(painter, dtype="float32", **arguments)
    assert expected.std() > 0
    assert np.abs(made.astype(int) - expected.astype(int)).max() <= 3


async def test_weights_have_the_type_of_a_gpu_when_the_stage_names_none(painter: Path) -> None:
    engine = await started(painter)
    try:
        assert engine._model is not None
        assert engine._model._pipeline.unet.dtype == torch.bfloat16
        assert (await painted(engine)).std() > 0
    finally:
        await engine.close()


async def test_engine_serves_on_when_a_picture_does_not_fit_in_the_memory(painter: Path) -> None:
    engine = await started(painter)
    try:
        before = await painted(engine)
        taken = torch.cuda.memory_reserved() / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(taken + 0.002)
        with pytest.raises(EngineError, match="memory"):
            await painted(engine, 2048)
        np.testing.assert_array_equal(await painted(engine), before)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        await engine.close()
