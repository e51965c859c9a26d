"""The processes of one stage, for a supervisor of a test."""

from __future__ import annotations

from collections.abc import Mapping

from omnibus.pipeline.allowed_code import AllowedCode
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.workers.initialisation.plans import plan_stages
from omnibus.workers.replica_processes import planned_processes
from omnibus.workers.supervisor import ProcessSpec


def stage_processes(
    spec: PipelineSpec,
    stage: StageSpec,
    num_replicas: int | None = None,
    *,
    broker: Mapping[str, str],
    **options: float,
) -> list[ProcessSpec]:
    """One process a replica; `num_replicas` overrides the stage's own, `options` are those of `planned_processes`."""
    plans = plan_stages(spec, {stage.stage_id}, replicas=num_replicas)
    plan = next(plan for plan in plans if plan.stage_id == stage.stage_id)
    return planned_processes(spec, plan, allowed=AllowedCode.of(spec), broker=broker, **options)
