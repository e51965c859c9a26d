"""The replicas of one stage on this machine, as processes that a supervisor keeps alive."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from omnibus.broker.connection import Connection
from omnibus.observability.metrics import Metrics
from omnibus.pipeline.allowed_code import AllowedCode, environment_of
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.death.claim_book import ClaimBook
from omnibus.registry.death.failure_detector import FailureDetector
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.workers.initialisation.plans import LogicalStageInitPlan
from omnibus.workers.interpreters import interpreter_of, version_environment
from omnibus.workers.supervisor import ChildDeath, ProcessSpec

QUIET: Mapping[str, str] = {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore::FutureWarning"}
"""Defaults of the environment of replicas, below the operator's and the stage's: progress bars of loaders and advice
from one library to another would fill the log."""


def planned_processes(
    spec: PipelineSpec,
    plan: LogicalStageInitPlan,
    *,
    broker: Mapping[str, str],
    grace: float = 30.0,
    start_timeout: float = 300.0,
    allowed: AllowedCode,
    overrides: Sequence[str] = (),
) -> list[ProcessSpec]:
    """The processes of a plan's local replicas; `overrides` change their stage, as the plan has it already.

    Raises CodeNotAllowed where the stage names code beyond `allowed`, before anything of its environment is used.
    """
    stage = spec.stage(plan.stage_id)
    if plan.local:
        allowed.check(stage)
    quiet = {name: value for name, value in QUIET.items() if name not in os.environ}
    return [
        ProcessSpec(
            name=replica.process_name,
            argv=[
                *_argv(
                    interpreter_of(stage),
                    {
                        "--pipeline": spec.name,
                        "--stage": str(plan.stage_id),
                        "--grace": str(grace),
                        "--start-timeout": str(start_timeout),
                        "--devices": replica.devices,
                    },
                ),
                *(f"--override={override}" for override in overrides),
            ],
            env={**quiet, **replica.env, **environment_of(allowed), **broker, **version_environment()},
            other_python=stage.python is not None,
            title=replica.title,
        )
        for replica in plan.local
    ]


class DeathReporter:
    """Tells of dead replicas: the first to know is the supervisor that started them."""

    def __init__(self, view: ReplicaView, after_failure: FailureDetector, metrics: Metrics) -> None:
        self._view, self._detector = view, after_failure
        self._metrics = metrics

    async def __call__(self, death: ChildDeath) -> None:
        """Have whatever was registered under the dead process's instance declared down."""
        for record in self._view.replicas():
            if record.instance == death.instance:
                self._metrics.replica_restarts.labels(self._view.pipeline, str(record.stage_id)).inc()
                await self._detector.mark_down(record)


@asynccontextmanager
async def with_death_reporter(
    connection: Connection, spec: PipelineSpec
) -> AsyncIterator[tuple[ReplicaView, DeathReporter]]:
    """Open what a supervisor of replicas needs: a view of them, and a reporter of deaths."""
    async with (
        ReplicaView(connection, spec.name, timeout=spec.heartbeat_timeout) as view,
        ClaimBook(connection, spec.name) as claims,
    ):
        yield view, DeathReporter(view, FailureDetector(connection, spec.name, claims), connection.metrics)


def _argv(interpreter: str, options: dict[str, str]) -> Sequence[str]:
    given = [part for name, value in options.items() if value for part in (name, value)]
    return [interpreter, "-m", "omnibus.workers.replica_main", *given]
