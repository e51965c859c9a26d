"""The start of `serve`: a line for each part, or a live table on a terminal; then a command to try, and `ready:`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from omnibus.broker.connection import Connection
from omnibus.broker.nats_access import CREDENTIALS_FILE, without_password
from omnibus.cli.process_group import Fleet
from omnibus.cli.readiness import Readiness, up
from omnibus.cli.tables import duration, make_table
from omnibus.errors import BrokerError, StageStartError
from omnibus.ledger.work_queue import WorkQueue
from omnibus.pipeline.allowed_code import AllowedCode
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.settings import DEFAULT_NATS_URL, default_state_dir
from omnibus.workers.initialisation import LogicalStageInitPlan
from omnibus.workers.supervisor import Supervisor

_REFRESH = 0.25
_MOST_RESTARTS = 4
"""Deaths of one process before everything is up after which there is no hope for it."""
_COUNT_DEADLINE = 2.0
_ORCHESTRATOR, _FRONT_DOOR = "orchestrator", "front door"
_PROMPTS = {"omni-tiny": "draw a red circle left of a blue square"}


@dataclass(slots=True, kw_only=True)
class ComingUp:
    """The processes of one `serve`, until all of them are up."""

    connection: Connection
    fleet: Fleet
    plans: list[LogicalStageInitPlan]
    view: ReplicaView
    supervisor: Supervisor
    source: str
    """The pipeline's name or file on the command line."""
    front_door: bool
    init_timeout: float
    embedded: bool
    """Whether the broker ends with this command."""
    _started: float = field(default_factory=time.monotonic)
    _up: dict[str, float] = field(default_factory=dict)
    """When each part came up first, in seconds after the start."""

    async def announce(self) -> None:
        """Say what comes up, and at last that all of it is; raises StageStartError when that takes too long."""
        settings = self.fleet.settings
        for plan in self.plans:
            if not plan.local:
                click.echo(f"elsewhere: {self._worker_command(plan)}")
        readiness = Readiness(self.connection, self.fleet.spec, self.view, self._note)
        wanted = {plan.stage_id: len(plan.local) for plan in self.plans if plan.local}
        try:
            with self._live():
                async with asyncio.timeout(self.init_timeout), asyncio.TaskGroup() as group:
                    watching = group.create_task(self._watch_restarts(), name="watch-restarts")
                    await readiness.wait(wanted, front_door=(settings.host, settings.port) if self.front_door else None)
                    watching.cancel()
        except TimeoutError as error:
            raise self._not_up(f"after {self.init_timeout:g} s") from error
        where = f" at http://{settings.host}:{settings.port}" if self.front_door else ""
        click.echo(f"try: {click.style(self._command_to_try(), bold=True)}")
        click.echo(
            f"{click.style('ready:', fg='green', bold=True)} {self.fleet.spec.name}{where}, NATS {self._nats_url}"
        )

    async def say_what_stays(self) -> None:
        """Say what of this pipeline is kept when its processes have ended, and what to do about it."""
        name, settings, count = self.fleet.spec.name, self.fleet.settings, 0
        with suppress(TimeoutError, BrokerError):
            async with asyncio.timeout(_COUNT_DEADLINE):
                count = len(await WorkQueue(self.connection, name).present())
        requests = f"{count} open request{'' if count == 1 else 's'}" if count else "its answers"
        again = f"omnibus serve {self.source}"
        if self.embedded:
            click.echo(f"{name} stays deployed, with {requests}, in {settings.state_dir}: {again} goes on with it")
            return
        away = f"omnibus pipeline delete {name}{self._way_there}"
        click.echo(
            f"{name} stays deployed, with {requests}, at {self._nats_url}: {again} goes on with it, {away} removes it"
        )

    @contextmanager
    def _live(self) -> Iterator[None]:
        """The table, drawn again and again, where there is a terminal; log lines go above it."""
        if not (sys.stdout.isatty() and sys.stderr.isatty()):
            yield
            return
        with Live(self._table(), console=Console(highlight=False), auto_refresh=False) as live:
            refreshing = asyncio.create_task(self._refresh(live), name="coming-up")
            try:
                yield
            finally:
                refreshing.cancel()
                live.update(self._table(), refresh=True)

    async def _refresh(self, live: Live) -> None:
        while True:
            live.update(self._table(), refresh=True)
            await asyncio.sleep(_REFRESH)  # the seconds go on also while nothing happens

    def _note(self, line: str) -> None:
        self._up.setdefault(line.removeprefix("up: "), time.monotonic() - self._started)
        if not (sys.stdout.isatty() and sys.stderr.isatty()):
            click.echo(line)

    def _table(self) -> Table:
        settings = self.fleet.settings
        rows = [self._service(_ORCHESTRATOR, "")]
        if self.front_door:
            rows.append(self._service(_FRONT_DOOR, f"http://{settings.host}:{settings.port}"))
        rows += [self._stage(plan) for plan in self.plans if plan.local]
        return make_table(("", "state", "after", ""), [["broker", "up", "", self._nats_url], *rows])

    def _service(self, name: str, where: str) -> list[str]:
        since = self._up.get(name)
        state, seconds = ("starting", time.monotonic() - self._started) if since is None else ("up", since)
        return [name, state, duration(seconds), where]

    def _stage(self, plan: LogicalStageInitPlan) -> list[str]:
        stage, ready, wanted = self.fleet.spec.stage(plan.stage_id), up(self.view)[plan.stage_id], len(plan.local)
        restarts = sum(self.supervisor.restarts[replica.process_name] for replica in plan.local)
        ups = [at for part, at in self._up.items() if part.split(" ")[0] == stage.name]
        state = "up" if ready >= wanted else "starting"
        seconds = max(ups) if ups and state == "up" else time.monotonic() - self._started
        count = f", {ready} of {wanted}" if wanted > 1 else ""
        again = f", restarted {restarts}×" if restarts else ""
        return [
            f"{stage.stage_id} {stage.name}",
            f"{state}{count}{again}",
            duration(seconds),
            f"{stage.engine} {stage.model}",
        ]

    def _command_to_try(self) -> str:
        """A command for another terminal, which finds what was started here."""
        name = self.fleet.spec.name
        which = "" if self.embedded else f" --pipeline {name}"  # others may be served at that broker, too
        return f'omnibus submit{which}{self._way_there} "{_PROMPTS.get(name, "hello")}"'

    @property
    def _way_there(self) -> str:
        """The options by which a command on this machine finds the broker."""
        settings = self.fleet.settings
        if self.fleet.addresses.is_embedded:
            return "" if settings.state_dir == default_state_dir() else f" --state-dir {settings.state_dir}"
        where = "" if self._nats_url == DEFAULT_NATS_URL else f" --nats {self._nats_url}"
        return where + ("" if settings.nats_credentials is None else f" --credentials {settings.nats_credentials}")

    def _worker_command(self, plan: LogicalStageInitPlan) -> str:
        stage = self.fleet.spec.stage(plan.stage_id)
        allowing = "".join(f" --allow-module {name}" for name in sorted({c.name for c in AllowedCode().beyond(stage)}))
        way_in = f"--nats {self._nats_url}{self._proof}"
        return f"omnibus worker --pipeline {self.fleet.spec.name} --stage {stage.name}{allowing} {way_in}"

    @property
    def _proof(self) -> str:
        """The credentials of a worker elsewhere."""
        settings = self.fleet.settings
        if settings.nats_url is not None:
            return ""
        if settings.nats_security is not None:
            return f" --credentials COPY (of ca.pem and the files of that worker and its supervisor in {settings.nats_security})"
        return f" --credentials COPY (of {settings.state_dir / CREDENTIALS_FILE})"

    @property
    def _nats_url(self) -> str:
        return without_password(self.fleet.addresses.url)

    async def _watch_restarts(self) -> None:
        """Raise StageStartError once a process has died again and again without ever having been up."""
        while True:
            await asyncio.sleep(_REFRESH)  # a supervisor counts, and tells nobody
            for name, count in self.supervisor.restarts.items():
                if count >= _MOST_RESTARTS:
                    raise self._not_up(f"and {name} has died {count} times")

    def _not_up(self, when: str) -> StageStartError:
        """Make the error: the parts that are not up, and the last lines of their replicas."""
        missing, lines, last_lines = [], [], self.supervisor.last_lines
        for plan in self.plans:
            ready = up(self.view)[plan.stage_id]
            if ready < len(plan.local):
                stage = f"stage {plan.stage_id} {plan.local[0].metadata.model_stage!r}"
                missing.append(f"{stage}: {ready} of {len(plan.local)} up")
                lines += [f"{replica.process_name} | {last_lines[replica.process_name]}" for replica in plan.local]
        what = "; ".join(missing) or "the orchestrator or the front door does not answer"
        return StageStartError("\n".join([f"not everything is up {when}: {what}", *lines]))
