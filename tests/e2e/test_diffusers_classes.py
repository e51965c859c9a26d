"""The diffusers engine on real classes of diffusers with tiny random weights, each compared with a direct call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from PIL import Image

from omnibus.media import pictures
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.request import ImagePart, Message, Part, TextPart
from omnibus.workers.engines.diffusers.engine import DiffusersEngine
from omnibus.workers.engines.protocol import Job, Progress
from tests.support.diffusers_classes import CASES, ClassCase
from tests.support.jobs import make_job, run_job

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio]
SEED = 5
DOCUMENTED = Path("docs/reference/engines.md").read_text().splitlines()
Folder = Callable[[ClassCase], Path]
_LENGTHS = {"StableAudioPipeline": "audio_end_in_s", "AceStepPipeline": "audio_duration"}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The checkpoint of a case; classes of one family share it."""
    torch.set_num_threads(1)
    made: dict[object, Path] = {}

    def folder(case: ClassCase) -> Path:
        if case.make not in made:
            made[case.make] = tmp_path_factory.mktemp("model")
            case.make(made[case.make])
        return made[case.make]

    return folder


@pytest.mark.filterwarnings(
    "ignore:.*weight_norm:FutureWarning", "ignore:__array__ implementation:DeprecationWarning"
)  # of the codec and of the schedulers that sound is made with
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)
async def test_results_are_those_of_a_direct_call(
    case: ClassCase, folder_of: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VAE_IMAGE_SIZE", "CONDITION_IMAGE_SIZE"):  # of the class for large pictures
        monkeypatch.setattr(edit_plus, name, 32 * 32)
    folder = folder_of(case)
    arguments = {"pipeline_class": case.kind, "leave_out": list(case.leave_out)}
    engine = DiffusersEngine(
        StageSpec(stage_id=0, name="s", engine="diffusers", model=str(folder), engine_args=arguments)
    )
    await engine.start()
    try:
        steps, last = await run_job(engine, job_of(case))
    finally:
        await engine.close()
    direct, parameters = called_directly(case, folder)

    for name, expected in outputs_of(direct).items():
        np.testing.assert_array_equal(last.outputs[name], expected, err_msg=name)
    total = case.steps or 0
    assert steps == [Progress(step=step, total=total) for step in range(1, total + 1)]
    row = case.row(last.outputs, parameters)
    assert row in DOCUMENTED, f"docs/reference/engines.md lacks the row {row}"


def job_of(case: ClassCase) -> Job:
    parts: list[Part] = [
        ImagePart(data=pictures.encoded(one), argument=None if name == "image" else name)
        for name, files in case.images.items()
        for one in files
    ]
    given: dict[str, Any] = {"values": dict(case.embeds)}
    if case.video is not None:
        given["values"]["video"] = case.video
    if parts:
        parts += [TextPart(text=case.prompt)] if case.prompt is not None else []
        given["messages"] = (Message(role="user", content=tuple(parts)),)
    elif case.prompt is not None:
        given["text"] = case.prompt
    return make_job(case.kind, {**case.sampling, "seed": SEED}, **given)


def called_directly(case: ClassCase, folder: Path) -> tuple[Any, int]:
    """What the class makes of the same request, and how many parameters its models have."""
    kind = getattr(diffusers, case.kind)
    left_out = dict.fromkeys(case.leave_out)
    absent = {name: None for name, one in kind.load_config(folder).items() if one == [None, None]}
    pipeline = kind.from_pretrained(folder, **left_out, **absent)
    pipeline.set_progress_bar_config(disable=True)
    arguments = dict(case.sampling)
    if "size" in arguments:
        arguments["width"], arguments["height"] = map(int, arguments.pop("size").split("x"))
    if "seconds" in arguments:
        arguments[_LENGTHS[case.kind]] = arguments.pop("seconds")
    if "fps" in arguments:
        arguments["frame_rate"] = arguments.pop("fps")
    arguments |= {name: torch.from_numpy(array)[None] for name, array in case.embeds.items()}
    arguments |= masks_of(case, kind)
    for name, files in case.images.items():
        images = [Image.fromarray(one) for one in files]
        arguments[name] = images if len(images) > 1 or "EditPlus" in case.kind else images[0]
    if case.video is not None:
        arguments["video"] = [Image.fromarray(frame) for frame in case.video]
    if case.prompt is not None:
        arguments["prompt"] = case.prompt
    if case.kind == "SanaPipeline":
        arguments |= {"negative_prompt": None, "use_resolution_binning": False}
    with torch.inference_mode():
        result = pipeline(**arguments, generator=torch.Generator().manual_seed(SEED), output_type="np")
    models = [one for one in pipeline.components.values() if isinstance(one, torch.nn.Module)]
    return result, sum(one.numel() for model in models for one in model.parameters())


def masks_of(case: ClassCase, kind: Any) -> dict[str, torch.Tensor]:
    """All of the embeddings count."""
    taken = inspect.signature(kind.__call__).parameters
    found = {}
    for name, array in case.embeds.items():
        stem, number = name.partition("_embeds")[::2]
        for one in (f"{stem}_attention_mask{number}", f"{stem}_embeds_mask{number}"):
            if one in taken and array.ndim == 2:
                found[one] = torch.ones(1, len(array), dtype=torch.int64)
    return found


def outputs_of(result: Any) -> dict[str, np.ndarray]:
    """The outputs of a call as those of a stage."""
    found = {}
    for ours, theirs in (("image", "images"), ("video", "frames")):
        if (made := getattr(result, theirs, None)) is not None:
            found[ours] = (np.asarray(made) * 255).round().clip(0, 255).astype(np.uint8)
    sound = getattr(result, "audios", getattr(result, "audio", None))
    if sound is not None:
        found["audio"] = np.asarray(sound, np.float32)[0]
    return found
