"""The target of a façade: a pipeline, or a model's folder as a pipeline of one stage."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from omnibus.errors import CheckpointMissing, InvalidRequest
from omnibus.pipeline.engines import EngineKind, checkpoint_files, kind_of_checkpoint
from omnibus.pipeline.loading import load_pipeline
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.pipeline.validation import validate

Target = PipelineSpec | str | PathLike[str]
"""A specification, a pipeline file, the name of a shipped one, or the folder of a checkpoint."""
_WORDS = {
    "video": ("Video", "Wan", "LTX", "Mochi", "Allegro", "Latte", "AnimateDiff", "Cosmos", "SkyReels", "T2V", "I2V"),
    "audio": ("Audio", "AceStep", "Music"),
}
"""Words in the names of pipeline classes of diffusers, by what they make."""


def pipeline_for(target: Target, engine_args: Mapping[str, Any]) -> PipelineSpec:
    """The pipeline to serve. A checkpoint's folder is served as it is, by the first engine that knows one of its files.

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
    kind = kind_of_checkpoint(frozenset(file.name for file in folder.iterdir()))
    if kind is None:
        raise CheckpointMissing(
            f"{folder} is no checkpoint that an engine knows: it has no {' or '.join(checkpoint_files())}"
        )
    stage = StageSpec(
        stage_id=0, name="model", engine=kind.name, model=str(folder), slots=kind.slots, engine_args=dict(engine_args),
        final_output=True, final_output_type=_modality(kind, folder),
    )  # fmt: skip
    name = re.sub(r"[^A-Za-z0-9_-]", "-", folder.resolve().name)[:64]
    spec = PipelineSpec(name=name or "model", stages=(stage,))
    validate(spec)
    return spec


def _modality(kind: EngineKind, folder: Path) -> str:
    """The modality that a checkpoint is for; where its engine delivers several, by the name of its pipeline class."""
    if kind.gives is None or len(kind.gives) == 1:
        return next(iter(kind.gives or {"text"}))
    try:
        name = str(json.loads((folder / kind.checkpoint_files[0]).read_bytes()).get("_class_name"))
    except (OSError, ValueError, AttributeError):  # which the engine will say
        name = ""
    return next((modality for modality, words in _WORDS.items() if any(word in name for word in words)), "image")
