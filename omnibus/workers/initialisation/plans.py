"""Plans of a start: for each stage its replicas, and for each replica its devices, environment and connectors."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from omnibus.pipeline.devices import (
    compute_replica_layout,
    get_stage_devices_per_replica,
    launcher_devices,
    visible_devices_env,
)
from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.spec import EdgeSpec, PipelineSpec, StageSpec


class LaunchMode(StrEnum):
    """The starter of a replica."""

    LOCAL = "local"
    """This process, as a child."""
    REMOTE = "remote"
    """A worker elsewhere, whenever it likes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMetadata:
    """Facts on a stage that others need without its engine."""

    stage_id: int
    model_stage: str
    """The stage's name."""
    stage_type: str
    engine_input_source: tuple[int, ...]
    final_output: bool
    final_output_type: str | None
    default_sampling_params: Mapping[str, Any]
    custom_process_input_func: str | None
    """`module:function`, as the next."""
    prompt_expand_func: str | None
    devices_per_replica: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConnectorSpec:
    """How a stage is joined to the others: the edges into and out of it, each with its forwarding and payload rule."""

    inputs: tuple[EdgeSpec, ...]
    outputs: tuple[EdgeSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaInitPlan:
    """One replica of a stage, as it will be started."""

    replica_id: int
    """Its number among those of the plan. The id under which it registers is assigned then, never given."""
    num_replicas: int
    launch_mode: LaunchMode
    metadata: StageMetadata
    stage_connector_spec: StageConnectorSpec
    devices: str
    """As the machine numbers them; empty: whatever is visible."""
    env: Mapping[str, str]
    """Added to the launcher's environment: the stage's own, and visibility."""

    @property
    def process_name(self) -> str:
        """The name of its process in logs."""
        return f"{self.metadata.model_stage}.{self.replica_id}"

    @property
    def title(self) -> str:
        """The name of the replica in errors."""
        where = f" on devices {self.devices}" if self.devices else ""
        stage = f"stage {self.metadata.stage_id} {self.metadata.model_stage!r}"
        return f"{stage}, replica {self.replica_id} of {self.num_replicas}{where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogicalStageInitPlan:
    """All replicas of one stage."""

    stage_idx: int
    """Its place in the pipeline."""
    stage_id: int
    replicas: tuple[ReplicaInitPlan, ...]
    """All replicas; for a remote stage, as many as the pipeline expects."""

    @property
    def local(self) -> tuple[ReplicaInitPlan, ...]:
        """Those that are started here."""
        return tuple(replica for replica in self.replicas if replica.launch_mode is LaunchMode.LOCAL)


def extract_stage_metadata(stage: StageSpec) -> StageMetadata:
    """The metadata of a stage of a valid pipeline."""
    return StageMetadata(
        stage_id=stage.stage_id,
        model_stage=stage.name,
        stage_type=engine_kind(stage.engine).stage_type,
        engine_input_source=stage.input_sources,
        final_output=stage.final_output,
        final_output_type=next(iter(stage.final_types), None),
        default_sampling_params=stage.default_sampling_params,
        custom_process_input_func=stage.input_processor,
        prompt_expand_func=stage.prompt_expand,
        devices_per_replica=get_stage_devices_per_replica(stage),
    )


def plan_stages(
    spec: PipelineSpec,
    here: Collection[int] | None = None,
    *,
    replicas: int | None = None,
    allow_zero: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> list[LogicalStageInitPlan]:
    """A plan for each stage of a valid pipeline, in its order.

    `here` are the ids of the stages that are started by this process, None for all; `replicas` overrides their number.
    `allow_zero` lets the pipeline say that a stage has no replica here. `environ` is the launcher's, whose visible devices
    the stages' count in. Raises ValueError when devices cannot be shared out, or are not there.
    """
    local = {stage.stage_id for stage in spec.stages} if here is None else set(here)
    stages = [
        msgspec.structs.replace(stage, num_replicas=replicas)
        if replicas is not None and stage.stage_id in local
        else stage
        for stage in spec.stages
    ]
    counts, shares_of = compute_replica_layout(stages, allow_zero=allow_zero)
    plans = []
    for index, (stage, count) in enumerate(zip(stages, counts, strict=True)):
        mode, shares = LaunchMode.REMOTE, [""] * count
        if stage.stage_id in local:
            mode, shares = LaunchMode.LOCAL, shares_of.get(index, [stage.devices] * count)
        devices = [launcher_devices(share, environ, stage.stage_id) for share in shares]
        planned = tuple(_plan_replicas(spec, stage, mode, devices))
        plans.append(LogicalStageInitPlan(stage_idx=index, stage_id=stage.stage_id, replicas=planned))
    return plans


def _plan_replicas(
    spec: PipelineSpec, stage: StageSpec, mode: LaunchMode, devices: Sequence[str]
) -> Iterator[ReplicaInitPlan]:
    metadata, connectors = extract_stage_metadata(stage), _connectors(spec, stage)
    for number, own in enumerate(devices):
        env = {} if mode is LaunchMode.REMOTE else {**stage.env, **visible_devices_env(own)}
        yield ReplicaInitPlan(
            replica_id=number, num_replicas=len(devices), launch_mode=mode, metadata=metadata,
            stage_connector_spec=connectors, devices=own, env=env,
        )  # fmt: skip


def _connectors(spec: PipelineSpec, stage: StageSpec) -> StageConnectorSpec:
    return StageConnectorSpec(
        inputs=tuple(spec.edge(source, stage.stage_id) for source in stage.input_sources),
        outputs=tuple(
            spec.edge(stage.stage_id, other.stage_id) for other in spec.stages if stage.stage_id in other.input_sources
        ),
    )
