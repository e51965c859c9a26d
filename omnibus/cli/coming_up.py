"""The start of `serve`: a line for each part, or live rows on a terminal; then a command to try, and `ready:`."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from dataclasses import dataclass

import click
from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn

from omnibus.broker.connection import Connection
from omnibus.broker.nats_access import CREDENTIALS_FILE, without_password
from omnibus.cli.process_group import Fleet
from omnibus.cli.readiness import FRONT_DOOR, ORCHESTRATOR, Readiness
from omnibus.errors import BrokerError, StageStartError
from omnibus.frontdoor.stage_readiness import missing_stages
from omnibus.ledger.work_queue import WorkQueue
from omnibus.pipeline.allowed_code import AllowedCode
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.settings import DEFAULT_NATS_URL, default_state_dir
from omnibus.workers.initialisation import LogicalStageInitPlan
from omnibus.workers.supervisor import Supervisor

_LOOK_EVERY = 0.25
_MOST_RESTARTS = 4
"""Deaths of one process before everything is up after which there is no hope for it."""
_COUNT_DEADLINE = 2.0
_PROMPTS = {"omni-tiny": "draw a red circle left of a blue square"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComingUp:
    """The processes of one `serve`, until all of them are up."""

    connection: Connection
    fleet: Fleet
    plans: list[LogicalStageInitPlan]
    source: str
    """The pipeline's name or file on the command line."""
    front_doors: int
    """Processes of it."""
    init_timeout: float
    embedded: bool
    """Whether the broker ends with this command."""

    async def announce(self, view: ReplicaView, supervisor: Supervisor) -> None:
        """Say what comes up, and at last that all of it is; raises StageStartError when that takes too long."""
        settings, spec = self.fleet.settings, self.fleet.spec
        elsewhere = [plan.stage_id for plan in self.plans if not plan.local]
        for stage_id in elsewhere:
            click.echo(f"elsewhere: {self._worker_command(stage_id)}")
        doors = (settings.host, settings.port, self.front_doors)
        try:
            with _Rows(self._parts()) as rows:
                readiness = Readiness(
                    self.connection, spec, view, rows.note, lambda one: one.instance in supervisor.instances
                )
                async with asyncio.timeout(self.init_timeout), asyncio.TaskGroup() as group:
                    watching = group.create_task(self._watch_restarts(view, supervisor), name="watch-restarts")
                    await readiness.wait(
                        {plan.stage_id: len(plan.local) for plan in self.plans if plan.local}, front_doors=doors
                    )
                    watching.cancel()
        except TimeoutError as error:
            raise self._not_up(view, supervisor, f"after {self.init_timeout:g} s") from error
        missing = missing_stages(spec, view.replicas(), elsewhere)
        if missing:
            what = ", ".join(map(str, missing))
            click.echo(f"missing: a replica of {what}: requests wait until the workers above run")
        else:
            click.echo(f"try: {click.style(self._command_to_try(), bold=True)}")
        where = f" at http://{settings.host}:{settings.port}" if self.front_doors else ""
        click.echo(f"{click.style('ready:', fg='green', bold=True)} {spec.name}{where}, NATS {self._nats_url}")

    async def say_what_stays(self) -> None:
        """Say what of this pipeline is kept when its processes have ended, and what to do about it."""
        name, settings, count = self.fleet.spec.name, self.fleet.settings, 0
        with suppress(TimeoutError, BrokerError):
            async with asyncio.timeout(_COUNT_DEADLINE):
                count = len(await WorkQueue(self.connection, name).present())
        requests = f"{count} open request{'' if count == 1 else 's'}" if count else "its answers"
        again = f"omnibus serve {self.source} goes on with it"
        where = f"in {settings.state_dir}" if self.embedded else f"at {self._nats_url}"
        away = "" if self.embedded else f", omnibus pipeline delete {name}{self._way_there} removes it"
        click.echo(f"{name} stays deployed, with {requests}, {where}: {again}{away}")

    def _parts(self) -> dict[str, tuple[str, int, str]]:
        """The parts that come up, by name: how each is shown, how many processes it has, what is to be known of it."""
        settings, spec = self.fleet.settings, self.fleet.spec
        parts = {"broker": ("broker", 0, self._nats_url), ORCHESTRATOR: (ORCHESTRATOR, 1, "")}
        if self.front_doors:
            parts[FRONT_DOOR] = (FRONT_DOOR, self.front_doors, f"http://{settings.host}:{settings.port}")
        for plan in self.plans:
            if plan.local:
                stage = spec.stage(plan.stage_id)
                what = f"{stage.engine} {stage.model}"
                parts[stage.name] = (f"{stage.stage_id} {stage.name}", len(plan.local), what)
        return parts

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

    def _worker_command(self, stage_id: int) -> str:
        stage = self.fleet.spec.without_interpreters().stage(stage_id)
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

    async def _watch_restarts(self, view: ReplicaView, supervisor: Supervisor) -> None:
        """Raise StageStartError once a process has died again and again without ever having been up."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)  # a supervisor counts, and tells nobody
            for name, count in supervisor.restarts.items():
                if count >= _MOST_RESTARTS:
                    raise self._not_up(view, supervisor, f"and {name} has died {count} times")

    def _not_up(self, view: ReplicaView, supervisor: Supervisor, when: str) -> StageStartError:
        """Make the error: the parts that are not up, and the last lines of their replicas."""
        missing, lines = [], []
        for plan in self.plans:
            ready = sum(one.ready and one.instance in supervisor.instances for one in view.replicas(plan.stage_id))
            if ready < len(plan.local):
                stage = f"stage {plan.stage_id} {plan.local[0].metadata.model_stage!r}"
                missing.append(f"{stage}: {ready} of {len(plan.local)} up")
                lines += [f"{one.process_name} | {supervisor.last_lines[one.process_name]}" for one in plan.local]
        what = "; ".join(missing) or "the orchestrator or the front door does not answer"
        return StageStartError("\n".join([f"not everything is up {when}: {what}", *lines]))


class _Rows(Progress):
    """The parts that come up: live rows where there is a terminal, else a line for each; log lines go above the rows."""

    def __init__(self, parts: dict[str, tuple[str, int, str]]) -> None:
        columns = (
            TextColumn("{task.description}"), TextColumn("{task.fields[state]}", style="yellow"), TimeElapsedColumn(),
            TextColumn("{task.fields[what]}"),
        )  # fmt: skip
        is_shown = sys.stdout.isatty() and sys.stderr.isatty()
        super().__init__(*columns, console=Console(highlight=False), disable=not is_shown)
        self._rows: dict[str, TaskID] = {}
        for name, (shown, total, what) in parts.items():
            self._rows[name] = self.add_task(shown, total=total, what=what, state="starting" if total else "[green]up")
            self.update(self._rows[name], completed=0)  # of nothing: its clock stops

    def note(self, part: str, rest: str) -> None:
        """A process of a part is up."""
        if self.disable:
            click.echo(f"up: {part}{rest}")
        task = self.tasks[self._rows[part]]
        done, total = task.completed + 1, task.total or 1
        state = "[green]up" if done >= total else f"starting, {done:g} of {total:g} up"
        self.update(task.id, completed=done, state=state)
