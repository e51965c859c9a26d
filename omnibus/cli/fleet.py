"""The processes of a served pipeline, and how they are kept."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from omnibus.broker.connection import Connection
from omnibus.broker.discovery import Addresses
from omnibus.errors import ConfigError
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.claims import ClaimBook
from omnibus.registry.verdict import Judge
from omnibus.registry.view import ReplicaView
from omnibus.settings import Settings
from omnibus.workers.replicas import Witness, replica_processes
from omnibus.workers.supervisor import ProcessSpec, Supervisor

_STOPS = (signal.SIGINT, signal.SIGTERM)


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

    def orchestrator(self) -> ProcessSpec:
        return self._command("orchestrator", {})

    def front_door(self) -> ProcessSpec:
        """The front door; the settings' port must not be 0, so that it comes back on the same one."""
        settings = self.settings
        env = {"OMNIBUS_HOST": settings.host, "OMNIBUS_PORT": str(settings.port)}
        if settings.api_keys:  # by the environment, which other users cannot read
            env["OMNIBUS_API_KEYS"] = ",".join(settings.api_keys)
        if settings.served_model_name:
            env["OMNIBUS_SERVED_MODEL_NAME"] = settings.served_model_name
        return self._command("frontdoor", env)

    def replicas(self, stage: StageSpec, count: int | None) -> list[ProcessSpec]:
        """The replicas of a stage; raises ConfigError when its devices cannot be shared out so."""
        try:
            processes = replica_processes(
                self.spec, stage, count,
                nats_url=self.addresses.url, grace=self.grace, start_timeout=self.stage_init_timeout,
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return [
            ProcessSpec(name=each.name, argv=each.argv, env={**self._environment(), **each.env}) for each in processes
        ]

    def _command(self, name: str, env: Mapping[str, str]) -> ProcessSpec:
        argv = (sys.executable, "-m", "omnibus.cli", name, "--pipeline", self.spec.name)
        return ProcessSpec(name=name, argv=argv, env={**self._environment(), **env})

    def _environment(self) -> dict[str, str]:
        env = {
            "OMNIBUS_NATS_URL": self.addresses.url,
            "OMNIBUS_STATE_DIR": str(self.settings.state_dir),
            "OMNIBUS_LOG_LEVEL": self.settings.log_level,
            "OMNIBUS_LOG_FORMAT": self._log_format(),
        }
        if self.addresses.system_url is not None:
            env["OMNIBUS_NATS_SYSTEM_URL"] = self.addresses.system_url
        return env

    def _log_format(self) -> str:
        """Decided here: a child writes to a pipe, whatever its lines are shown on in the end."""
        if self.settings.log_format != "auto":
            return self.settings.log_format
        return "console" if sys.stderr.isatty() else "json"


@asynccontextmanager
async def witnessed(connection: Connection, spec: PipelineSpec) -> AsyncIterator[tuple[ReplicaView, Witness]]:
    """What a supervisor of replicas needs: a view of them, and whom to tell of the dead."""
    async with (
        ReplicaView(connection, spec.name, timeout=spec.heartbeat_timeout) as view,
        ClaimBook(connection, spec.name) as claims,
    ):
        yield view, Witness(view, Judge(connection, spec.name, claims), connection.metrics)


async def supervise(supervisor: Supervisor) -> None:
    """Run children until all have ended. Ctrl-C or SIGTERM ends them in order, a second one kills them.

    Raises StageStartError when one cannot start, and KeyboardInterrupt after a kill.
    """
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
