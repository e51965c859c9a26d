"""The replicas of one stage on this machine, as processes that a supervisor keeps alive."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from omnibus.observability.metrics import Metrics
from omnibus.pipeline.devices import replica_devices, visible_devices_env
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.verdict import Judge
from omnibus.registry.view import ReplicaView
from omnibus.workers.supervisor import Death, ProcessSpec


def replica_processes(
    spec: PipelineSpec,
    stage: StageSpec,
    num_replicas: int | None = None,
    *,
    nats_url: str,
    grace: float = 30.0,
    start_timeout: float = 300.0,
) -> list[ProcessSpec]:
    """One process a replica, each seeing its own share of the stage's devices.

    `num_replicas` overrides the stage's own. Raises ValueError when the devices cannot be shared out so.
    """
    shares = replica_devices(stage, num_replicas)
    options = {
        "--pipeline": spec.name,
        "--stage": str(stage.stage_id),
        "--grace": str(grace),
        "--start-timeout": str(start_timeout),
    }
    return [
        ProcessSpec(
            name=f"{stage.name}.{index}",
            argv=_argv({**options, "--devices": devices}),
            # The broker's address may hold a password: it goes by the environment, which others cannot read.
            env={**stage.env, **visible_devices_env(devices), "OMNIBUS_NATS_URL": nats_url},
        )
        for index, devices in enumerate(shares)
    ]


class Witness:
    """Tells of dead replicas: the first to know is the supervisor that started them."""

    def __init__(self, view: ReplicaView, judge: Judge, metrics: Metrics) -> None:
        self._view, self._judge = view, judge
        self._metrics = metrics

    async def __call__(self, death: Death) -> None:
        """Have whatever was registered under the dead process's instance declared down."""
        for record in self._view.replicas():
            if record.instance == death.instance:
                self._metrics.replica_restarts.labels(self._view.pipeline, str(record.stage_id)).inc()
                await self._judge.declare_down(record)


def _argv(options: dict[str, str]) -> Sequence[str]:
    given = [part for name, value in options.items() if value for part in (name, value)]
    return [sys.executable, "-m", "omnibus.workers.replica_main", *given]
