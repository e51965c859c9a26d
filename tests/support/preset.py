"""A shipped pipeline on tiny checkpoints: its graph, processors and parameters as they are, the weights and sizes not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from omnibus.client.producer import Producer
from omnibus.client.request_events import Result
from omnibus.pipeline.loading import load_pipeline
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire.request import Request

START_WAIT = 60.0
"""Seconds for vLLM to start while other tests compute."""
FEW_STEPS = {"num_inference_steps": 2, "height": 32, "width": 32, "seed": 5}
_SMALL = {"max_model_len": 1024, "max_num_batched_tokens": 1024, "kv_cache_memory_bytes": 64 << 20}
_GPU_ONLY = ("gpu_memory_utilization", "limit_mm_per_prompt")


def tiny(preset: str, name: str, models: Mapping[str, Path]) -> PipelineSpec:
    """The preset under another name, with a checkpoint for each stage, in sizes that a CPU takes."""
    spec = load_pipeline(preset)
    stages = tuple(_on_cpu(stage, models[stage.name]) for stage in spec.stages)
    return msgspec.structs.replace(spec, name=name, stages=stages, deadline=60.0)


async def ask(producer: Producer, spec: PipelineSpec, prompt: str, sampling: Mapping[str, Mapping[str, Any]]) -> Result:
    """The answer to a prompt; raises what the request failed with."""
    params = {stage: dict(given) for stage, given in sampling.items()}
    result = await (await producer.submit(spec, Request(prompt=prompt, sampling_params=params))).result()
    result.raise_for_state()
    return result


def _on_cpu(stage: StageSpec, model: Path) -> StageSpec:
    args = {key: value for key, value in stage.engine_args.items() if key not in _GPU_ONLY}
    if stage.engine == "vllm":
        args |= _SMALL
    return msgspec.structs.replace(stage, model=str(model), engine_args=args, devices="", slots=min(stage.slots, 4))
