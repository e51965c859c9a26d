"""The work of `omnibus autoscale`: replicas here, or a Deployment elsewhere, by what waits for a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import click

from omnibus.broker.nats_access import without_password
from omnibus.cli.command_health import replicas_check
from omnibus.cli.launch import PreparedWorker, WorkerArguments, prepared_worker
from omnibus.cli.metrics_port import sharing
from omnibus.cli.process_group import log_stats, supervise
from omnibus.cli.root import (
    START_WAIT,
    connected,
    end_with_parent,
    find_pipeline,
    load_settings,
    run,
    run_until_stopped,
    start_logging,
)
from omnibus.client.autoscaler import Autoscaler
from omnibus.client.kubernetes_scale import DeploymentScale
from omnibus.errors import ConfigError
from omnibus.ledger.stage_lag import stage_lag
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.scaling import ScalePolicy
from omnibus.settings import Settings
from omnibus.workers.elastic_replicas import ElasticReplicas
from omnibus.workers.hang_detector import HangWatch
from omnibus.workers.replica_processes import with_death_reporter


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleArguments:
    """Arguments of `omnibus autoscale`."""

    worker: WorkerArguments
    least: int
    most: int
    lag: int | None
    cooldown: float
    every: float
    deployment: str | None
    namespace: str | None
    kube_api: str | None

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> Self:
        """Those of the command line; raises ConfigError for what cannot work together."""
        own = {name: flags[name] for name in cls.__dataclass_fields__ if name != "worker"}
        if own["deployment"] is None and (own["namespace"] or own["kube_api"]):
            raise ConfigError("--namespace and --kube-api are of a --deployment", param="deployment")
        rest = {name: its for name, its in flags.items() if name not in own}
        return cls(worker=WorkerArguments(**rest, replicas=own["most"]), **own)

    def policy(self, stage: StageSpec) -> ScalePolicy:
        """The policy for a stage; raises ConfigError."""
        try:
            return ScalePolicy(
                least=self.least,
                most=self.most,
                lag=self.lag if self.lag is not None else stage.slots,
                cooldown=self.cooldown,
            )
        except ValueError as error:
            raise ConfigError(f"--min, --max: {error}", param="max") from error


def autoscale(arguments: ScaleArguments) -> None:
    """Scale until Ctrl-C or SIGTERM."""
    end_with_parent()
    settings = load_settings()
    if arguments.deployment is not None:
        run_until_stopped(settings, _elsewhere(settings, arguments))
        return
    start_logging(settings)
    run(_here(settings, arguments))


async def _elsewhere(settings: Settings, arguments: ScaleArguments) -> None:
    """Scale a Deployment; nothing runs here, and nothing is stopped at the end."""
    assert arguments.deployment is not None
    deployment = DeploymentScale.in_cluster(
        arguments.deployment, namespace=arguments.namespace, api=arguments.kube_api
    )  # fmt: skip
    ref = arguments.worker.stage
    async with connected(settings, role="supervisor", stage=ref, wait=START_WAIT) as connection:
        spec = await find_pipeline(connection, arguments.worker.pipeline, wait=START_WAIT)
        stage = spec.stage(ref)
        policy = arguments.policy(stage)
        click.echo(f"ready: {_of(spec, stage, policy)} by {deployment.namespace}/{deployment.name}")
        reading = partial(stage_lag, connection, spec.name, stage.stage_id, spec.stage_lanes)
        running = await deployment.get()
        await Autoscaler(stage.name, policy, reading, deployment.set, running=running).run(arguments.every)


async def _here(settings: Settings, arguments: ScaleArguments) -> None:
    async with prepared_worker(settings, arguments.worker) as prepared:
        await _keep(prepared, arguments)


async def _keep(prepared: PreparedWorker, arguments: ScaleArguments) -> None:
    connection, fleet, stage = prepared.connection, prepared.fleet, prepared.stage
    policy = arguments.policy(stage)
    async with with_death_reporter(connection, fleet.spec) as (view, reporter):
        replicas = ElasticReplicas(
            sharing(fleet.replicas(prepared.plans), prepared.folder),
            grace=fleet.grace + 5.0, on_death=reporter, metrics=connection.metrics,
        )  # fmt: skip

        async def set_replicas(wanted: int) -> None:
            replicas.scale(wanted)

        async def lag() -> int:
            own = (one.replica for one in view.replicas(stage.stage_id) if one.directed)
            return await stage_lag(connection, fleet.spec.name, stage.stage_id, [*fleet.spec.stage_lanes, *own])

        scaler = Autoscaler(stage.name, policy, lag, set_replicas, ended=lambda: replicas.ended)
        prepared.health.follow(replicas_check(connection, view, replicas, ()))
        watch = HangWatch(connection, view, replicas, fleet.settings.hang_timeout)
        click.echo(f"ready: {_of(fleet.spec, stage, policy)} here, NATS {without_password(fleet.addresses.url)}")
        stats = [log_stats(view)] if arguments.worker.log_stats else []
        await supervise(replicas, scaler.run(arguments.every), watch.run(), *stats)


def _of(spec: PipelineSpec, stage: StageSpec, policy: ScalePolicy) -> str:
    return f"{spec.name}, {policy.least} to {policy.most} replicas of stage {stage.stage_id} {stage.name}"
