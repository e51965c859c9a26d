"""A pipeline of vLLM-Omni, or consecutive stages of it, made a pipeline of its registry that AsyncOmni can run alone."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_omni.config.pipeline_registry import OMNI_PIPELINES, register_pipeline, resolve_pipeline_config
from vllm_omni.config.stage_config import (
    _DEPLOY_DIR,
    PipelineConfig,
    StageExecutionType,
    StagePipelineConfig,
    resolve_deploy_yaml,
)

from omnibus.errors import ConfigError
from omnibus.pipeline.files import suggestion
from omnibus_vllm_omni.courier import CONNECTOR

OURS = ("devices", "num_replicas", "env", "input_connectors", "output_connectors", "async_chunk")
"""Fields of a stage's deployment that a stage of Omnibus has itself, or that join stages which are apart here."""
OF_WHOLE = ("platforms", "connectors", "edges", "async_chunk")
"""The same of a deployment."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Consecutive stages of a pipeline, numbered from 0 as vLLM-Omni needs them."""

    stages: tuple[StagePipelineConfig, ...]
    """As their pipeline has them."""
    goes_on: bool
    """Whether the pipeline has stages behind them."""
    hands_over: bool
    """Whether their last stage makes a payload for the next one, which leaves through the connector."""
    deploy: Path
    """The deploy file, which names the registered pipeline."""


def pipeline_named(name: str) -> PipelineConfig:
    """The pipeline of this registry key, in its fullest form where it depends on a checkpoint; raises ConfigError."""
    if name not in OMNI_PIPELINES:
        known = suggestion(name, OMNI_PIPELINES) or f"; it has {', '.join(sorted(OMNI_PIPELINES))}"
        raise ConfigError(f"vLLM-Omni has no pipeline {name!r}{known}", param="engine_args.pipeline")
    found = resolve_pipeline_config(name)
    if found is None:  # its resolver wants a checkpoint's configuration
        known_there = vars(sys.modules[OMNI_PIPELINES[name].__module__]).values()
        found = next((one for one in known_there if isinstance(one, PipelineConfig) and one.model_type == name), None)
    if found is None:
        raise ConfigError(f"the stages of {name!r} depend on the checkpoint: import that instead", param="pipeline")
    return found


def deployment_of(whole: PipelineConfig) -> dict[str, Any]:
    """The deploy file that vLLM-Omni ships for a pipeline; empty where there is none."""
    file = _DEPLOY_DIR / (whole.default_deploy_config_name or f"{whole.model_type}.yaml")
    return dict(resolve_deploy_yaml(file)) if file.exists() else {}


def make_part(
    name: str,
    stage_ids: Sequence[int] | None,
    deployment: Mapping[str, Any] | None,
    *,
    devices: int,
    folder: Path,
    address: str,
) -> Part:
    """Register the stages with these ids (None: all) under a name of their own, and write their deploy file into `folder`.

    `address`: where the connector sends payloads. Raises ConfigError.
    """
    whole = pipeline_named(name)
    given = dict(deployment_of(whole) if deployment is None else deployment)
    chosen = _chosen(whole, stage_ids)
    goes_on = chosen[-1].stage_id != whole.stages[-1].stage_id
    hands_over = goes_on and bool(chosen[-1].custom_process_next_stage_input_func)
    own_name = f"omnibus_{whole.model_type}"
    if len(chosen) < len(whole.stages):
        numbers = {stage.stage_id: number for number, stage in enumerate(chosen)}
        given = _cut(given, numbers, devices, address if hands_over else None)
        own_name += "".join(f"_{stage.stage_id}" for stage in chosen)
        stages = tuple(_renumbered(stage, numbers, is_last=stage is chosen[-1]) for stage in chosen)
        whole = dataclasses.replace(
            whole, stages=stages, default_deploy_config_name=None, duplex_plugin=None, stage_cli_aliases={}
        )
    register_pipeline(dataclasses.replace(whole, model_type=own_name), own_name)
    file = folder / "deploy.yaml"
    file.write_text(json.dumps({"async_chunk": False, **given, "pipeline": own_name}))  # which is YAML, too
    return Part(chosen, goes_on, hands_over, file)


def _chosen(whole: PipelineConfig, stage_ids: Sequence[int] | None) -> tuple[StagePipelineConfig, ...]:
    known = [stage.stage_id for stage in whole.stages]
    wanted = known if stage_ids is None else list(stage_ids)
    chosen = tuple(stage for stage in whole.stages if stage.stage_id in wanted)
    first = known.index(chosen[0].stage_id) if chosen else 0
    if not wanted or known[first : first + len(wanted)] != wanted:
        raise ConfigError(f"stages must be consecutive ones of {known}, not {wanted}", param="engine_args.stages")
    return chosen


def _renumbered(stage: StagePipelineConfig, numbers: Mapping[int, int], *, is_last: bool) -> StagePipelineConfig:
    inside = tuple(numbers[source] for source in stage.input_sources if source in numbers)
    changes: dict[str, Any] = {"stage_id": numbers[stage.stage_id], "input_sources": inside}
    if stage.input_sources and not inside:  # its input comes with the prompt: nothing to wait for
        changes |= {"custom_process_input_func": None, "sync_process_input_func": None}
        changes |= {"requires_full_payload_input": False}
    if is_last:
        changes |= {"final_output": True, "final_output_type": stage.final_output_type or _modality(stage)}
    return dataclasses.replace(stage, **changes)


def _modality(stage: StagePipelineConfig) -> str:
    return "image" if stage.execution_type is StageExecutionType.DIFFUSION else "text"


def _cut(given: Mapping[str, Any], numbers: Mapping[int, int], devices: int, address: str | None) -> dict[str, Any]:
    """A deployment of these stages alone, with our connector behind the last one where there is an address."""
    by_id = {stage["stage_id"]: stage for stage in given.get("stages", ())}
    stages: list[dict[str, Any]] = []
    for theirs, ours in numbers.items():
        kept = {key: value for key, value in by_id.get(theirs, {}).items() if key not in OURS}
        stages.append({**kept, "stage_id": ours, "devices": ",".join(map(str, range(devices)))})
    cut = {key: value for key, value in given.items() if key not in OF_WHOLE} | {"stages": stages}
    if address is not None:
        stages[-1]["output_connectors"] = {f"to_stage_{len(stages)}": "omnibus"}
        cut["connectors"] = {"omnibus": {"name": CONNECTOR, "extra": {"address": address}}}
    return cut


def load_function(path: str) -> Any:
    """The function that a dotted path of theirs names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def input_function(stage: StagePipelineConfig) -> str | None:
    """The dotted path of the function that makes a stage's input of whole outputs."""
    return stage.sync_process_input_func or stage.custom_process_input_func
