"""LoRA adapters that an operator adds to a running pipeline, and removes.

They stand in the pipeline's deployed specification, among the `lora_modules` of its stages: so every front door knows them, and
a replica that starts later has them. Replicas that run are called. A new deployment of the pipeline replaces them by its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.client.rpc import LONGEST_TIMEOUT, CollectiveAnswer, collective_rpc
from omnibus.errors import InvalidRequest, UnknownModel
from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.deployed_pipelines import change_deployed

MODULES = "lora_modules"
Places = Mapping[int, str]
"""Where an adapter is, by the id of the stage that has it."""


def adapter_stages(spec: PipelineSpec) -> tuple[int, ...]:
    """The stages that take adapters; raises InvalidRequest where there is none."""
    found = tuple(stage.stage_id for stage in spec.stages if _takes_adapters(stage))
    if not found:
        raise InvalidRequest(
            f"no stage of pipeline {spec.name!r} takes adapters while it runs: give a vllm stage `enable_lora: true`",
            param="model",
        )
    return found


async def add_adapter(
    connection: Connection, spec: PipelineSpec, name: str, place: str, *, again: bool = False
) -> None:
    """Add an adapter to the stages that take adapters; `again`: in the place of one of that name.

    `place` is a folder of the workers' machines, `package:` or a name on the hub. Raises InvalidRequest for a name that is
    taken, and for an adapter that a replica cannot load; then nothing has changed. Raises EngineError when a replica does not
    answer.
    """
    stages = adapter_stages(spec)
    before: Places = {}

    def add(deployed: PipelineSpec) -> PipelineSpec:
        nonlocal before
        before = _places(deployed, name)
        if before and not again:
            raise InvalidRequest(f"there is an adapter {name!r} already: see load_inplace", param="lora_name")
        return _with(deployed, name, dict.fromkeys(stages, place))

    await change_deployed(connection, spec.name, add)
    loaded = await _called(connection, spec, stages, "load_adapter", name, place)
    if not loaded.complete:
        await change_deployed(connection, spec.name, lambda deployed: _with(deployed, name, before))
        for stage_id in stages:
            undo = ("load_adapter", name, before[stage_id]) if stage_id in before else ("unload_adapter", name)
            await _called(connection, spec, [stage_id], *undo)
        loaded.raise_for_partial()


async def remove_adapter(connection: Connection, spec: PipelineSpec, name: str) -> None:
    """Remove an adapter; requests that have been accepted with it and wait are refused by their stage.

    Raises UnknownModel where there is none of this name, EngineError when a replica does not answer; it is removed all the same.
    """
    stages = adapter_stages(spec)

    def remove(deployed: PipelineSpec) -> PipelineSpec:
        if not _places(deployed, name):
            raise UnknownModel(f"there is no adapter {name!r}", param="lora_name")
        return _with(deployed, name, {})

    await change_deployed(connection, spec.name, remove)
    unloaded = await _called(connection, spec, stages, "unload_adapter", name)
    dataclasses.replace(unloaded, empty_stages=()).raise_for_partial()


async def _called(
    connection: Connection, spec: PipelineSpec, stages: Sequence[int], method: str, *args: Any
) -> CollectiveAnswer:
    return await collective_rpc(
        connection, spec, method, timeout=LONGEST_TIMEOUT, args=args, stage_ids=stages, starting=True
    )


def _places(spec: PipelineSpec, name: str) -> Places:
    return {
        stage.stage_id: stage.engine_args[MODULES][name]
        for stage in spec.stages
        if _takes_adapters(stage) and name in stage.engine_args.get(MODULES, ())
    }


def _with(spec: PipelineSpec, name: str, places: Places) -> PipelineSpec:
    """The specification with an adapter at these places, and nowhere else."""

    def changed(stage: StageSpec) -> StageSpec:
        if not _takes_adapters(stage):
            return stage
        others = {one: at for one, at in stage.engine_args.get(MODULES, {}).items() if one != name}
        own = {name: places[stage.stage_id]} if stage.stage_id in places else {}
        return replace(stage, engine_args={**stage.engine_args, "enable_lora": True, MODULES: {**others, **own}})

    return replace(spec, stages=tuple(map(changed, spec.stages)))


def _takes_adapters(stage: StageSpec) -> bool:
    return engine_kind(stage.engine).loads_adapters(stage.engine_args)
