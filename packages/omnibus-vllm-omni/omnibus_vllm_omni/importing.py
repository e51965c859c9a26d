"""Pipeline files made of vLLM-Omni's registry and deploy files: the child program of `omnibus pipeline import`.

`python -m omnibus_vllm_omni.importing` reads a request as JSON from standard input, and writes its answer to standard output:
`{"pipelines": [{"pipeline": {…}, "notes": […]}]}` or `{"error": "…"}`. All else that is printed goes to standard error.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from vllm_omni.config.pipeline_registry import OMNI_PIPELINES
from vllm_omni.config.resolver import resolve_omni_config
from vllm_omni.config.stage_config import (
    PipelineConfig,
    StageExecutionType,
    StagePipelineConfig,
    resolve_deploy_yaml,
)

from omnibus.errors import ConfigError
from omnibus_vllm_omni.topology import (
    OF_WHOLE,
    OURS,
    deployment_of,
    input_function,
    load_function,
    pipeline_named,
)

AT_ONCE = 16
"""Slots of a stage that decodes tokens where the deploy file sets no `max_num_seqs`."""


def main() -> None:
    """Answer the request on standard input."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # what is imported prints
        try:
            answer: dict[str, Any] = {"pipelines": list(_imported(json.load(sys.stdin)))}
        except ConfigError as error:
            answer = {"error": error.message}
        except Exception as error:  # noqa: BLE001 of vLLM-Omni's code, on a file of the caller's
            answer = {"error": f"{type(error).__name__}: {error}"}
        json.dump(answer, out)
    os._exit(0)  # not by the end of main, which waits for threads


def _imported(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for module in request["register"]:
        importlib.import_module(module)
    if request["all"]:
        found: dict[int, PipelineConfig] = {}
        for name in list(OMNI_PIPELINES):
            pipeline = pipeline_named(name)
            found.setdefault(id(pipeline), pipeline)
        for pipeline in found.values():
            yield _written(request, pipeline, deployment_of(pipeline), request["model"])
        return
    yield _one(request)


def _one(request: Mapping[str, Any]) -> dict[str, Any]:
    source, model = request["source"], request["model"]
    if source.endswith((".yaml", ".yml")):
        return _of_deploy_file(request, Path(source), model)
    if source in OMNI_PIPELINES:
        pipeline = pipeline_named(source)
        return _written(request, pipeline, deployment_of(pipeline), _needed(model, f"{source} is a pipeline"))
    found = resolve_omni_config(
        source, trust_remote_code=False, deploy_config_path=None, cli_overrides={}, stage_overrides=None,
        strategy_config_path=None,
    )  # fmt: skip
    if found.pipeline_config is not None and found.pipeline_config.model_type in OMNI_PIPELINES:
        return _written(request, found.pipeline_config, deployment_of(found.pipeline_config), source)
    (stage,) = found.stage_configs
    return _written_diffusion(request, source, stage.final_output_type or "image")


def _of_deploy_file(request: Mapping[str, Any], file: Path, model: str | None) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(f"{file}: there is no such file")
    deployment = dict(resolve_deploy_yaml(file))
    if "stage_args" in deployment:
        raise ConfigError(f"{file}: `stage_args` is a schema that vLLM-Omni reads no more; write `stages`")
    model = _needed(model, f"{file} names no model")
    if (name := deployment.get("pipeline")) is not None:
        return _written(request, pipeline_named(name), deployment, model)
    found = resolve_omni_config(
        model, trust_remote_code=False, deploy_config_path=str(file), cli_overrides={}, stage_overrides=None,
        strategy_config_path=None,
    )  # fmt: skip
    if found.pipeline_config is None:
        raise ConfigError(f"{file} names no pipeline, and the model {model} has none in vLLM-Omni's registry")
    return _written(request, found.pipeline_config, deployment, model)


def _needed(model: str | None, why: str) -> str:
    if model is None:
        raise ConfigError(f"{why}: give its checkpoint, --model FOLDER_OR_HUB_NAME")
    return model


def why_not_apart(whole: PipelineConfig, deployment: Mapping[str, Any]) -> list[str]:
    """Reasons why the stages of a pipeline cannot be stages of Omnibus each; none where they can."""
    reasons = []
    by_id = {stage.stage_id: stage for stage in whole.stages}
    deployed = {stage["stage_id"]: stage.get("omni_kv_config") or {} for stage in deployment.get("stages") or ()}
    for stage in whole.stages:
        kv = {**(stage.omni_kv_config or {}), **deployed.get(stage.stage_id, {})}
        if kv.get("need_send_cache") or kv.get("need_recv_cache"):
            reasons.append(f"{stage.model_stage} shares its KV cache with another stage")
        if stage.prompt_expand_func:
            reasons.append(f"{stage.model_stage} expands a request into companions")
        for source in stage.input_sources:
            upstream = by_id[source]
            if not upstream.async_chunk_process_next_stage_input_func or upstream.custom_process_next_stage_input_func:
                continue
            if (why := _why_no_outputs(stage)) is not None:
                reasons.append(f"{upstream.model_stage} sends {stage.model_stage} chunks only{why}")
    return reasons


def _why_no_outputs(stage: StagePipelineConfig) -> str | None:
    """Why a stage cannot take whole outputs of the stage before it, if that is so."""
    path = input_function(stage)
    if path is None:
        return ""
    try:
        function = load_function(path)
    except ImportError as error:  # of a package that the environment has not
        return f" as far as can be seen: {error}"
    return "" if next(iter(inspect.signature(function).parameters)) == "stage_list" else None


def _written(
    request: Mapping[str, Any], whole: PipelineConfig, deployment: Mapping[str, Any], model: str
) -> dict[str, Any]:
    reasons = why_not_apart(whole, deployment)
    apart = not (request["whole"] or reasons) and len(whole.stages) > 1
    notes = [] if request["whole"] or not reasons else [f"a stage each: {reason}" for reason in reasons]
    given = {stage["stage_id"]: stage for stage in deployment.get("stages") or ()}
    stages = []
    for number, group in enumerate([[stage] for stage in whole.stages] if apart else [list(whole.stages)]):
        own = _part(group[0], given.get(group[0].stage_id, {})) if apart else _whole(whole, given)
        args = {"pipeline": _key(whole), **own.pop("engine_args")}
        if request["register"]:
            args["register"] = list(request["register"])
        kept = [given[stage.stage_id] for stage in group if stage.stage_id in given]
        left = OF_WHOLE if apart else ()
        args["deploy"] = {key: value for key, value in deployment.items() if key not in (*left, "stages", "pipeline")}
        args["deploy"] = {key: value for key, value in args["deploy"].items() if value is not None}
        if kept:
            args["deploy"]["stages"] = [_of_engine(stage) if apart else dict(stage) for stage in kept]
        stages.append({
            "stage_id": number, **own, "engine": "vllm_omni", "model": model, **_interpreter(request), "engine_args": args,
        })  # fmt: skip
    if apart:
        numbers = {stage.stage_id: number for number, stage in enumerate(whole.stages)}
        for stage in stages:
            if "input_sources" in stage:
                stage["input_sources"] = [numbers[source] for source in stage["input_sources"]]
    notes += list(_notes(whole, deployment, apart=apart))
    name = request["name"] or _key(whole).replace(".", "-")
    return {"pipeline": {"name": name, "deadline": "10m", "stages": stages}, "notes": notes}


def _key(whole: PipelineConfig) -> str:
    return next(key for key, one in OMNI_PIPELINES.items() if one is whole or key == whole.model_type)


def _part(stage: StagePipelineConfig, deployed: Mapping[str, Any]) -> dict[str, Any]:
    replicas = int(deployed.get("num_replicas") or 1)
    devices = str(deployed.get("devices") or "").replace(" ", "")
    each = max(1, len(devices.split(",")) // replicas) if devices else 1
    made: dict[str, Any] = {"name": stage.model_stage, "devices": devices, "num_replicas": replicas}
    made["slots"] = _slots(stage, deployed)
    if stage.input_sources:
        made["input_sources"] = list(stage.input_sources)
    if stage.final_output:
        made |= {"final_output": True, "final_output_type": stage.final_output_type}
    if deployed.get("env"):
        made["env"] = {name: str(value) for name, value in deployed["env"].items()}
    made["engine_args"] = {"stages": [stage.stage_id], **({"devices": each} if each > 1 else {})}
    return made


def _whole(whole: PipelineConfig, given: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    named = [str(stage.get("devices") or "0").replace(" ", "").split(",") for stage in given.values()]
    devices = sorted({device for one in named for device in one}, key=lambda one: (len(one), one)) or ["0"]
    finals = list(dict.fromkeys(stage.final_output_type for stage in whole.stages if stage.final_output))
    slots = max(_slots(stage, given.get(stage.stage_id, {})) for stage in whole.stages)
    return {
        "name": _key(whole).replace(".", "-"), "devices": ",".join(devices), "slots": slots,
        "final_output": True, "final_output_type": finals if len(finals) > 1 else finals[0],
        "engine_args": {"devices": len(devices)} if len(devices) > 1 else {},
    }  # fmt: skip


def _written_diffusion(request: Mapping[str, Any], model: str, modality: str) -> dict[str, Any]:
    """A checkpoint of the diffusion registry, which no pipeline names."""
    stage = {
        "stage_id": 0, "name": "diffusion", "engine": "vllm_omni", "model": model, **_interpreter(request),
        "final_output": True, "final_output_type": modality,
    }  # fmt: skip
    name = request["name"] or Path(model).name.replace(".", "-")
    return {"pipeline": {"name": name, "deadline": "10m", "stages": [stage]}, "notes": []}


def _interpreter(request: Mapping[str, Any]) -> dict[str, str]:
    return {"python": request["python"]} if request["python"] else {}


def _slots(stage: StagePipelineConfig, deployed: Mapping[str, Any]) -> int:
    given = deployed.get("max_num_seqs")
    default = 1 if stage.execution_type is StageExecutionType.DIFFUSION else AT_ONCE
    return default if given is None else int(given)


def _of_engine(deployed: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a stage's deployment that no field of ours has, and that its engine reads."""
    return {key: value for key, value in deployed.items() if key not in OURS}


def _notes(whole: PipelineConfig, deployment: Mapping[str, Any], *, apart: bool) -> Iterator[str]:
    """All that a pipeline or its deploy file has and the written file has not."""
    if deployment.get("session_mode", "turn") != "turn":
        yield f"session_mode {deployment['session_mode']}: each request is a turn of its own"
    if whole.endpoint_restrictions:
        yield "endpoint_restrictions: every endpoint of the front door takes requests"
    if apart and deployment.get("platforms"):
        yield "platforms: write what this machine needs into the stages"
    joining = [key for key in OF_WHOLE if key != "platforms" and deployment.get(key)]
    for stage in deployment.get("stages") or ():
        keys = ("input_connectors", "output_connectors", "async_chunk")
        joining += [f"{key} of stage {stage['stage_id']}" for key in keys if stage.get(key)]
    if apart and joining:
        yield f"{', '.join(joining)}: between stages travel whole payloads"


if __name__ == "__main__":
    main()
