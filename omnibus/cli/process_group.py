"""The processes of a served pipeline, and how they are kept."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import sys
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from omnibus.broker.connection import Connection
from omnibus.broker.discovery import Addresses
from omnibus.errors import ConfigError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.pipeline.allowed_code import AllowedCode
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.settings import Settings
from omnibus.workers.elastic_replicas import ElasticReplicas
from omnibus.workers.hang_detector import HangWatch
from omnibus.workers.initialisation.plans import LogicalStageInitPlan, plan_stages
from omnibus.workers.replica_processes import planned_processes, with_death_reporter
from omnibus.workers.supervisor import ProcessSpec, Supervisor

STATS_EVERY = 10.0
"""Seconds between two lines of `--log-stats` about a replica."""
_STOPS = (signal.SIGINT, signal.SIGTERM)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """How the processes of one deployed pipeline are started."""

    spec: PipelineSpec
    settings: Settings
    addresses: Addresses
    grace: float
    """Seconds that a replica has to finish its tasks when it is stopped."""
    stage_init_timeout: float
    """Seconds that an engine may take to load."""
    allowed: AllowedCode
    """Code that its replicas may load, whatever is deployed by the time that they start."""
    overrides: tuple[str, ...] = ()
    """Changes of their stage in the replicas started here; `spec` has them already."""

    def orchestrator(self) -> ProcessSpec:
        """It ends last: what replicas finish while they leave becomes answers through it."""
        argv = (sys.executable, "-m", "omnibus.cli", "orchestrator", "--pipeline", self.spec.name)
        return ProcessSpec(name="orchestrator", argv=argv, env=self.environment(), last=True)

    def plan(
        self, here: Collection[int] | None = None, *, replicas: int | None = None, allow_zero: bool = False
    ) -> list[LogicalStageInitPlan]:
        """`plan_stages`; raises ConfigError when the devices of a stage cannot be shared out so."""
        try:
            return plan_stages(self.spec, here, replicas=replicas, allow_zero=allow_zero)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def replicas(self, plans: Sequence[LogicalStageInitPlan]) -> list[ProcessSpec]:
        """The processes of the replicas that are started here; raises CodeNotAllowed."""
        processes = [
            process
            for plan in plans
            for process in planned_processes(
                self.spec, plan, overrides=self.overrides, allowed=self.allowed,
                broker=self.addresses.environment, grace=self.grace, start_timeout=self.stage_init_timeout,
            )
        ]  # fmt: skip
        return [dataclasses.replace(process, env={**self.environment(), **process.env}) for process in processes]

    def environment(self) -> dict[str, str]:
        """The variables by which a child finds the broker and logs as this process does."""
        return {
            "OMNIBUS_STATE_DIR": str(self.settings.state_dir),
            "OMNIBUS_LOG_LEVEL": self.settings.log_level,
            "OMNIBUS_SHARED_MEMORY": str(int(self.settings.shared_memory)),
            "OMNIBUS_PAYLOAD_ADDRESS": self.settings.payload_address,
            "OMNIBUS_OUTPUT_STORE": self.settings.output_store,
            "OMNIBUS_LOG_FORMAT": log_format(self.settings),
            **self.addresses.environment,
        }


def log_format(settings: Settings) -> str:
    """The format of a child's log. Decided here: a child writes to a pipe, whatever its lines are shown on in the end."""
    if settings.log_format != "auto":
        return settings.log_format
    return "color" if sys.stderr.isatty() else "json"


async def keep_running(
    connection: Connection, fleet: Fleet, processes: Sequence[ProcessSpec],
    announce: Callable[[ReplicaView, Supervisor], Coroutine[Any, Any, None]], *, stats: bool,
) -> None:  # fmt: skip
    """Supervise processes until all have ended; `announce` runs beside them. Raises as `supervise`."""
    async with with_death_reporter(connection, fleet.spec) as (view, reporter):
        supervisor = Supervisor(
            processes, grace=fleet.grace + 5.0, on_death=reporter, metrics=connection.metrics
        )  # fmt: skip
        beside = [
            announce(view, supervisor),
            HangWatch(connection, view, supervisor, fleet.settings.hang_timeout).run(),
        ]
        await supervise(supervisor, *beside, *([log_stats(view)] if stats else []))


async def log_stats(view: ReplicaView, every: float = STATS_EVERY) -> None:
    """Log the load of every replica of the pipeline, each `every` seconds, until cancelled."""
    while True:
        await asyncio.sleep(every)
        for record in view.replicas():
            log.info(
                LogEvent.REPLICA_STATS, stage=record.stage_id, replica=record.replica, status=record.status,
                slots=record.slots, in_flight=record.in_flight, queue_length=record.queue_length,
            )  # fmt: skip


async def supervise(supervisor: Supervisor | ElasticReplicas, *beside: Coroutine[Any, Any, None]) -> None:
    """Run children until all have ended, and other things beside them for as long.

    Ctrl-C or SIGTERM ends the children in order, a second one kills them. Raises KeyboardInterrupt after a kill, and a group
    of a StageStartError when a child cannot start, or of what one beside them raises.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one, name=f"beside-{number}") for number, one in enumerate(beside)]
        await _until_ended(supervisor)
        for task in tasks:
            task.cancel()


async def _until_ended(supervisor: Supervisor | ElasticReplicas) -> None:
    loop = asyncio.get_running_loop()
    running, stops = asyncio.create_task(supervisor.run(), name="supervisor"), 0

    def stop() -> None:
        nonlocal stops
        stops += 1
        if stops == 1:
            supervisor.stop()
        else:
            running.cancel()

    for number in _STOPS:
        loop.add_signal_handler(number, stop)
    try:
        await running
    except asyncio.CancelledError:
        if stops > 1:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number in _STOPS:
            loop.remove_signal_handler(number)
