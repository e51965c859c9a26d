"""LoRA adapters that an operator adds to a running pipeline, and removes.

They stand in the pipeline's deployed specification, as `added_adapters` of its stages: so every front door knows them, and a
replica that starts later has them. Replicas that run are called. Deployments keep them; what a file declares comes back with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.client.rpc import LONGEST_TIMEOUT, CollectiveAnswer, collective_rpc
from omnibus.errors import InvalidRequest, UnknownModel
from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.deployed_pipelines import change_deployed


def adapter_stages(spec: PipelineSpec) -> tuple[int, ...]:
    """The stages that take adapters; raises InvalidRequest where there is none."""
    found = tuple(stage.stage_id for stage in _takers(spec))
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

    `place` is a folder of the workers' machines, `package:` or a name on the hub. The same adapter may be added twice. Raises
    InvalidRequest for a name that another one has, and for an adapter that a replica cannot load; then nothing has changed.
    Raises EngineError when a replica does not answer.
    """
    stages = adapter_stages(spec)
    former = spec

    def add(deployed: PipelineSpec) -> PipelineSpec:
        nonlocal former
        former = deployed
        if not again and any(stage.adapters.get(name, place) != place for stage in _takers(deployed)):
            raise InvalidRequest(f"there is another adapter {name!r} already: see load_inplace", param="lora_name")
        return _changed(deployed, lambda stage: _with_added(stage, name, place))

    await change_deployed(connection, spec.name, add)
    loaded = await _called(connection, spec, stages, "load_adapter", name, place)
    if not loaded.complete:
        before = {stage.stage_id: stage for stage in _takers(former)}

        def undone(stage: StageSpec) -> StageSpec:
            known = before.get(stage.stage_id)
            return _with_added(stage, name, known.added_adapters.get(name) if known is not None else None)

        await change_deployed(connection, spec.name, lambda deployed: _changed(deployed, undone))
        for stage_id in stages:
            at = before[stage_id].adapters.get(name) if stage_id in before else None
            undo = ("unload_adapter", name) if at is None else ("load_adapter", name, at)
            await _called(connection, spec, [stage_id], *undo)
        loaded.raise_for_partial()


async def remove_adapter(connection: Connection, spec: PipelineSpec, name: str) -> None:
    """Remove an adapter; requests that have been accepted with it and wait are refused by their stage.

    Raises UnknownModel where there is none of this name, EngineError when a replica does not answer; it is removed all the same.
    """
    stages = adapter_stages(spec)

    def remove(deployed: PipelineSpec) -> PipelineSpec:
        if not any(name in stage.adapters for stage in _takers(deployed)):
            raise UnknownModel(f"there is no adapter {name!r}", param="lora_name")
        return _changed(deployed, lambda stage: _without_declared(_with_added(stage, name, None), name))

    await change_deployed(connection, spec.name, remove)
    unloaded = await _called(connection, spec, stages, "unload_adapter", name)
    dataclasses.replace(unloaded, empty_stages=()).raise_for_partial()


async def _called(
    connection: Connection, spec: PipelineSpec, stages: Sequence[int], method: str, *args: Any
) -> CollectiveAnswer:
    return await collective_rpc(
        connection, spec, method, timeout=LONGEST_TIMEOUT, args=args, stage_ids=stages, starting=True
    )


def _takers(spec: PipelineSpec) -> Iterator[StageSpec]:
    return (stage for stage in spec.stages if engine_kind(stage.engine).loads_adapters(stage.engine_args))


def _changed(spec: PipelineSpec, change: Callable[[StageSpec], StageSpec]) -> PipelineSpec:
    """The specification with every stage changed that takes adapters."""
    changed = {stage.stage_id: change(stage) for stage in _takers(spec)}
    return replace(spec, stages=tuple(changed.get(stage.stage_id, stage) for stage in spec.stages))


def _with_added(stage: StageSpec, name: str, place: str | None) -> StageSpec:
    """The stage with an added adapter at this place; None: without one of this name."""
    others = {one: at for one, at in stage.added_adapters.items() if one != name}
    return replace(stage, added_adapters=others if place is None else {**others, name: place})


def _without_declared(stage: StageSpec, name: str) -> StageSpec:
    if name not in stage.declared_adapters:
        return stage
    others = {one: at for one, at in stage.declared_adapters.items() if one != name}
    # That it declared some may be all that has it take adapters.
    return replace(stage, engine_args={**stage.engine_args, "enable_lora": True, "lora_modules": others})
