"""Child processes kept alive: started, started again with backoff when they die, stopped together.

The same class runs replicas, orchestrators and front doors. Children die with it, kill -9 included (`workers.lineage`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from omnibus.child_process import ChildProcess, start_child
from omnibus.errors import StageStartError
from omnibus.lineage import PARENT_VARIABLE
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.metrics import Metrics
from omnibus.payloads.memory import remove_abandoned
from omnibus.settings import inherited_environment

INSTANCE_VARIABLE = "OMNIBUS_INSTANCE"
"""Set for each start of a child: a name that no other process ever has."""
FATAL_EXIT_CODE = 78
"""Exit code of a child that would fail again in the same way (EX_CONFIG): it is not started again."""
RESTART_EXIT_CODE = 75
"""Exit code of a child that left in order and wants to be started again at once (EX_TEMPFAIL)."""
FIRST_DELAY, LONGEST_DELAY = 0.1, 10.0
"""Seconds before a dead child is started again; doubles with every quick death."""
HEALTHY_AFTER = 30.0
"""Seconds of life after which a child's next death counts as its first."""
LAST_GRACE = 5.0
"""Seconds, at most, between SIGTERM and SIGKILL of those that are stopped when the others have ended."""
LAST_LINES = 30
"""Lines of a child's output that its failure is reported with."""
_LINE_LIMIT = 1 << 20

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """A child: how it is called in logs, and how it is started."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the supervisor's own environment."""
    other_python: bool = False
    """Whether it runs under another interpreter than this process."""
    title: str = ""
    """The name of the child in the error that it cannot start."""
    last: bool = False
    """Whether the others need it to finish what they have: it is stopped when they have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildDeath:
    """A child's end that nobody asked for."""

    name: str
    instance: str
    returncode: int
    """Negative: the signal that killed it."""
    seconds: float
    """How long it lived."""


DeathHook = Callable[[ChildDeath], Awaitable[None]]


class Supervisor:
    """Runs children until `stop`, or until all have ended by themselves with exit code 0.

    `on_death` hears of every death at once, before anything else is done about it, and is given a few seconds at most.
    `grace` is how long children have between SIGTERM and SIGKILL when they are stopped.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        *,
        grace: float = 30.0,
        on_death: DeathHook | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._children = [_Child(spec) for spec in specs]
        self._grace = grace
        self._on_death = on_death
        self._metrics = metrics
        self._stopping = asyncio.Event()
        self._failure: StageStartError | None = None
        self._pids: set[int] = set()
        """Those of all children there ever were."""

    async def run(self) -> None:
        """Start all, and return when all have ended.

        A child that could never start ends the others too, and raises StageStartError with its last lines; one that did
        before is tried again. Cancelling `run` kills the children at once.
        """
        try:
            async with asyncio.TaskGroup() as group:
                stopper = group.create_task(self._stop_children(), name="supervisor-stop")
                async with asyncio.TaskGroup() as keepers:  # which cancels each once: twice would cut its end short
                    for child in self._children:
                        child.keeper = keepers.create_task(self._keep_alive(child), name=f"keep-{child.name}")
                stopper.cancel()
        finally:
            remove_abandoned(self._pids)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Ask all children to end; idempotent, safe in a signal handler of the loop."""
        self._stopping.set()

    @property
    def restarts(self) -> dict[str, int]:
        """How often each child was started again, by name."""
        return {child.name: child.restarts for child in self._children}

    @property
    def ended(self) -> set[str]:
        """Names of children that have left in order, and are not started again."""
        return {child.name for child in self._children if child.keeper is not None and child.keeper.done()}

    @property
    def last_lines(self) -> dict[str, str]:
        """The last lines of each child's output in its present life, by name."""
        return {child.name: child.last_lines for child in self._children}

    @property
    def pids(self) -> dict[str, int]:
        """Process id by name, of children that run now."""
        return {child.name: child.process.pid for child in self._children if child.process is not None}

    @property
    def instances(self) -> set[str]:
        """Those of children that run now."""
        return {child.instance for child in self._children if child.process is not None}

    def kill(self, instance: str) -> None:
        """SIGKILL a child and its process group, while it lives this life; it is started again as after any death."""
        for child in self._children:
            if child.instance == instance:
                child.signal(signal.SIGKILL)

    async def _keep_alive(self, child: _Child) -> None:
        quick_deaths, lives = 0, 0
        while not self._stopping.is_set():
            death, lives = await child.live(self._death_reporter, self._pids.add), lives + 1
            if death.returncode == 0 or self._stopping.is_set():
                return
            if death.returncode == RESTART_EXIT_CODE:
                continue
            if death.returncode == FATAL_EXIT_CODE and lives == 1:
                self._failure = StageStartError(f"{child.name} cannot start{child.title}:\n{child.last_lines}")
                self.stop()
                return
            quick_deaths = 0 if death.seconds >= HEALTHY_AFTER else quick_deaths + 1
            delay = min(FIRST_DELAY * 2 ** (quick_deaths - 1), LONGEST_DELAY) if quick_deaths else 0.0
            child.restarts += 1
            log.warning(
                LogEvent.REPLICA_RESTARTING, process=child.name, returncode=death.returncode,
                lived=round(death.seconds, 3), restarts=child.restarts, delay=delay,
            )  # fmt: skip
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()

    async def _death_reporter(self, death: ChildDeath) -> None:
        if self._on_death is None or death.returncode in (0, RESTART_EXIT_CODE):
            return
        try:
            async with asyncio.timeout(3.0):
                await self._on_death(death)
        except Exception:
            if self._metrics is not None:
                self._metrics.errors.labels(where="supervisor").inc()
            log.exception(LogEvent.TASK_CRASHED, process=death.name)

    async def _stop_children(self) -> None:
        await self._stopping.wait()
        await self._end([child for child in self._children if not child.last], self._grace)
        await self._end([child for child in self._children if child.last], min(self._grace, LAST_GRACE))

    async def _end(self, children: Sequence[_Child], grace: float) -> None:
        for child in children:
            child.signal(signal.SIGTERM)
        if kept := [child.keeper for child in children if child.keeper is not None]:
            await asyncio.wait(kept, timeout=grace)
        for child in children:
            child.signal(signal.SIGKILL)


class _Child:
    """One child, through all its lives."""

    def __init__(self, spec: ProcessSpec) -> None:
        self._spec = spec
        self.name, self.last = spec.name, spec.last
        self.keeper: asyncio.Task[None] | None = None
        """Ends when it will not be started again."""
        self.process: ChildProcess | None = None
        self.instance = ""
        self.restarts = 0
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._former_lines = self._lines
        """Lines of its life before, which show most while this one has written none."""

    @property
    def title(self) -> str:
        return f" ({self._spec.title})" if self._spec.title else ""

    @property
    def last_lines(self) -> str:
        return "\n".join(self._lines or self._former_lines)

    async def live(self, on_end: DeathHook, on_start: Callable[[int], None]) -> ChildDeath:
        """Start the process, pass its output on, and wait for its end; its process group ends with it.

        Cancelling kills it; `on_end` hears of that, too, and `on_start` of its process id.
        """
        self.instance = instance = f"{self.name}-{secrets.token_hex(4)}".replace(" ", "-")
        started = time.monotonic()
        self._former_lines, self._lines = self._lines, deque(maxlen=LAST_LINES)
        self.process = process = await start_child(
            *self._spec.argv,
            env={
                **inherited_environment(other_python=self._spec.other_python),
                **self._spec.env,
                PARENT_VARIABLE: str(os.getpid()),
                INSTANCE_VARIABLE: instance,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the supervisor only, which ends its children in order
            limit=_LINE_LIMIT,
        )
        on_start(process.pid)
        echo = asyncio.create_task(self._echo(process), name=f"echo-{self.name}")
        try:
            await process.wait()
        finally:
            self.process = None
            _signal_group(
                process.pid, signal.SIGKILL
            )  # processes that it left behind, or itself when this is cancelled
            code, lived = await process.wait(), time.monotonic() - started
            death = ChildDeath(name=self.name, instance=instance, returncode=code, seconds=lived)
            await on_end(death)  # first: its output may be held open by a process that left its group
            await self._end_of(echo)
            process.close()
        return death

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, SIGKILL to the whole process group; nothing happens when the child has ended."""
        if self.process is None:
            return
        if number is signal.SIGKILL:
            _signal_group(self.process.pid, number)
        self.process.send_signal(number)

    async def _echo(self, process: ChildProcess) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line beyond the limit: its rest follows as lines of their own
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._lines.append(text)
            sys.stderr.write(f"{self.name} | {text}\n")

    async def _end_of(self, echo: asyncio.Task[None]) -> None:
        _, late = await asyncio.wait({echo}, timeout=2.0)
        for task in late:
            task.cancel()


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
