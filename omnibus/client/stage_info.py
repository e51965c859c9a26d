"""Information on a pipeline's stages for callers of a façade: pure."""

from __future__ import annotations

from dataclasses import dataclass

from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.spec import PipelineSpec, StageSpec

_TASKS = {"text": "generate", "image": "text-to-image", "audio": "text-to-speech", "video": "text-to-video"}


@dataclass(frozen=True, slots=True)
class StageRuntimeInfo:
    """One stage."""

    final_output: bool
    """Whether its output is delivered."""
    final_output_type: str | None
    """Under which modality; of several the first."""
    model_stage: str
    """Its name."""
    stage_type: str
    """`llm`, `diffusion`, `codec` or `custom`, as its engine says."""


def stage_info(stage: StageSpec) -> StageRuntimeInfo:
    """Describe a stage."""
    kind = engine_kind(stage.engine)
    return StageRuntimeInfo(stage.final_output, next(iter(stage.final_types), None), stage.name, kind.stage_type)


def supported_tasks(spec: PipelineSpec) -> tuple[str, ...]:
    """List the tasks that a pipeline can do: `generate` for text, `text-to-image`, `text-to-speech`, …"""
    return tuple(_TASKS.get(modality, modality) for modality in spec.modalities)
