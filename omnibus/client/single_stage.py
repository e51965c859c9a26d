"""What a façade is to serve: a pipeline, or a model's folder as a pipeline of one stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from omnibus.errors import InvalidRequest
from omnibus.pipeline.loading import load_pipeline
from omnibus.pipeline.spec import EngineName, PipelineSpec, StageSpec
from omnibus.pipeline.validation import validate

Target = PipelineSpec | str | PathLike[str]
"""A specification, a pipeline file, the name of a shipped one, or the folder of a checkpoint."""
_SLOTS = {"vllm": 64, "diffusers": 1}


def pipeline_for(target: Target, engine_args: Mapping[str, Any]) -> PipelineSpec:
    """The pipeline to serve. A checkpoint's folder is served as it is: diffusers' by diffusers, any other by vLLM.

    `engine_args` are for the engine of a checkpoint; a pipeline says itself how its stages run, so there they are refused
    with InvalidRequest. Raises PipelineError.
    """
    if not isinstance(target, PipelineSpec) and Path(target).is_dir():
        return _of_checkpoint(Path(target), engine_args)
    if engine_args:
        name = next(iter(engine_args))
        raise InvalidRequest(
            f"{name!r} is not an argument here; a pipeline's stages have theirs in its file", param=name
        )
    return target if isinstance(target, PipelineSpec) else load_pipeline(target)


def _of_checkpoint(folder: Path, engine_args: Mapping[str, Any]) -> PipelineSpec:
    engine: EngineName = "diffusers" if (folder / "model_index.json").exists() else "vllm"
    stage = StageSpec(
        stage_id=0, name="model", engine=engine, model=str(folder), slots=_SLOTS[engine], engine_args=dict(engine_args),
        final_output=True, final_output_type="image" if engine == "diffusers" else "text",
    )  # fmt: skip
    name = re.sub(r"[^A-Za-z0-9_-]", "-", folder.resolve().name)[:64]
    spec = PipelineSpec(name=name or "model", stages=(stage,))
    validate(spec)
    return spec
