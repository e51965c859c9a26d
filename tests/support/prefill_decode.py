"""A pipeline of two real engines: omni-tiny's thinker, one stage for prompts and one for texts."""

from __future__ import annotations

from msgspec.structs import replace

from omnibus.pipeline.loading import load_pipeline
from omnibus.pipeline.spec import EdgeSpec, PayloadRule, PipelineSpec
from omnibus.pipeline.validation import validate

PREFILL, DECODE = 5, 0
"""Ids of the stages."""
EDGE = EdgeSpec(source=PREFILL, target=DECODE, payload=PayloadRule.SHM)


def prefill_decode(name: str, *, deadline: float = 200.0, stall: float | None = None) -> PipelineSpec:
    """The first two stages of the shipped pipeline; their KV, which is small, goes through shared memory all the same."""
    whole = load_pipeline("omni-tiny-pd")
    stages = tuple(replace(whole.stage(number), stall_timeout=stall) for number in (PREFILL, DECODE))
    spec = replace(whole, name=name, deadline=deadline, stages=stages, edges=(EDGE,))
    validate(spec)
    return spec
