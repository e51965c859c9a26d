"""The two halves of a generation as two stages: what their `role` asks of a pipeline. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from omnibus.pipeline.plain_values import Path, Problem
from omnibus.pipeline.spec import PipelineSpec, StageSpec

PREFILL, DECODE = "prefill", "decode"
_SAME_FIELDS = ("model", "revision")
_SAME_ARGUMENTS = ("hidden_states", "lora_modules")


def role_problems(spec: PipelineSpec) -> Iterator[Problem]:
    """Find a prefill stage that would deliver something, and a decode stage without a prefill stage of the same model."""
    for index, stage in enumerate(spec.stages):
        path: Path = ("stages", index)
        role = _role(stage)
        if role == PREFILL and stage.final_output:
            yield Problem((*path, "final_output"), "a prefill stage delivers nothing: the stage that decodes does")
        if role == DECODE:
            yield from _decode_problems(path, stage, spec)


def _decode_problems(path: Path, stage: StageSpec, spec: PipelineSpec) -> Iterator[Problem]:
    sources = [spec.stage(source) for source in stage.input_sources]
    found = [source for source in sources if _role(source) == PREFILL]
    if len(found) != 1:
        yield Problem((*path, "input_sources"), f"a decode stage has one prefill stage among them, not {len(found)}")
        return
    prefill = found[0]
    for name in _SAME_FIELDS:
        if getattr(stage, name) != getattr(prefill, name):
            yield Problem((*path, name), f"must be that of its prefill stage {prefill.name!r}")
    for name in _SAME_ARGUMENTS:
        if stage.engine_args.get(name) != prefill.engine_args.get(name):
            yield Problem((*path, "engine_args", name), f"must be that of its prefill stage {prefill.name!r}")


def _role(stage: StageSpec) -> object:
    return stage.engine_args.get("role") if stage.engine == "vllm" else None
