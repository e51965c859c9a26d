"""`omnibus serve` as a child of this process: for the demo, the benches and the tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from omnibus.broker.discovery import running_server
from omnibus.errors import StageStartError
from omnibus.lineage import PARENT_VARIABLE, terminate_alive_proc

START_TIMEOUT = 300.0
STOP_TIMEOUT = 45.0
_READY = re.compile(r"^ready: (?P<pipeline>\S+)(?: at (?P<url>\S+))?, NATS (?P<nats>\S+)$")
_LAST_LINES = 15


@dataclass(frozen=True, slots=True)
class Serving:
    """A running `omnibus serve`."""

    url: str
    """The front door, without a path; empty without one."""
    nats_url: str
    pid: int
    log: Path
    """Everything that it logs."""


@contextmanager
def serving(
    pipeline: str,
    *flags: str,
    state_dir: Path,
    env: Mapping[str, str] = MappingProxyType({}),
    timeout: float = START_TIMEOUT,
    say: Callable[[str], None] = lambda _line: None,
) -> Iterator[Serving]:
    """Start `omnibus serve PIPELINE FLAGS` over a state directory of its own; at the end stop it as Ctrl-C would.

    `env`: variables that it has beside those of this process.
    `say` hears its progress, a line at a time. Raises StageStartError with the end of its log when it is not ready within
    `timeout` seconds. Call it on a thread that lives as long: on Linux the child dies with it.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    log = state_dir / "serve.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            _command(pipeline, flags, state_dir),
            env={**os.environ, **env, PARENT_VARIABLE: str(os.getpid()), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,  # one Ctrl-C ends it in order, a second one would kill it: it gets one, from here
        )
    try:
        yield _await_ready(process, log, timeout, say)
    finally:
        stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    """End the child in order, or by force when it takes too long; its session ends with it."""
    terminate_alive_proc(process, STOP_TIMEOUT, by=signal.SIGINT)
    if process.stdout is not None:
        process.stdout.close()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _command(pipeline: str, flags: Sequence[str], state_dir: Path) -> list[str]:
    return [sys.executable, "-m", "omnibus.cli", "serve", pipeline, "--state-dir", str(state_dir), *flags]


def _await_ready(process: subprocess.Popen[str], log: Path, timeout: float, say: Callable[[str], None]) -> Serving:
    assert process.stdout is not None
    started = time.monotonic()
    alarm = threading.Timer(timeout, process.kill)
    alarm.start()
    try:
        for line in process.stdout:
            ready = _READY.match(line.strip())
            if ready is not None:
                running = running_server(log.parent)  # whose address has the password
                return Serving(ready["url"] or "", running.url if running else ready["nats"], process.pid, log)
            say(line.strip())
    finally:
        alarm.cancel()
    seconds = time.monotonic() - started
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
    raise StageStartError(f"omnibus serve was not ready after {seconds:.0f} s; the end of its log:\n{tail}")
