"""The root of a command: its settings, its loop, its way out, its connection, and the pipeline that it means."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from omnibus.cli.options import SETTING

if TYPE_CHECKING:
    from omnibus.broker.connection import Connection
    from omnibus.pipeline.spec import PipelineSpec
    from omnibus.settings import Settings

_PAUSE = 0.25
T = TypeVar("T")
START_WAIT = 60.0
"""Seconds that a long-lived process waits for its broker when it starts."""


def load_settings(**flags: Any) -> Settings:
    """Settings of the environment, overridden by the flags that were given (those that are not None).

    Raises ConfigError naming the setting that cannot be read.
    """
    from pydantic import ValidationError  # noqa: PLC0415 commands import when they run

    from omnibus.errors import ConfigError  # noqa: PLC0415
    from omnibus.settings import Settings  # noqa: PLC0415

    context = click.get_current_context(silent=True)
    noted = context.meta if context is not None else {}
    known = {name.removeprefix(SETTING): value for name, value in noted.items() if name.startswith(SETTING)}
    try:
        return Settings(**known, **{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ConfigError(f"OMNIBUS_{name.upper()}: {first['msg']}", param=name) from error


def start_logging(settings: Settings) -> None:
    """Logs of a long-lived process, on stderr. It goes on when nobody reads what it prints any more."""
    from omnibus.cli.streams import outlive_readers  # noqa: PLC0415
    from omnibus.observability.logging import configure_logging  # noqa: PLC0415

    outlive_readers()
    configure_logging(settings.log_level, settings.log_format)


def ask(work: Coroutine[Any, Any, T]) -> T:
    """`run` for a command that asks and ends: it logs warnings only."""
    from omnibus.observability.logging import configure_logging  # noqa: PLC0415

    configure_logging("warning", "console")
    return run(work)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on uvloop. Ctrl-C cancels `work` and raises KeyboardInterrupt; a second one kills."""
    finished = _run(_stoppable(work, (signal.SIGINT,)))
    if not finished:
        raise KeyboardInterrupt
    return finished[0]


def _run(work: Coroutine[Any, Any, T]) -> T:
    import uvloop  # noqa: PLC0415

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def end_with_parent() -> bool:
    """Have this process die with the one that started it, when that one asks for it; whether it does."""
    from omnibus.lineage import PARENT_VARIABLE, die_with_parent  # noqa: PLC0415

    if PARENT_VARIABLE not in os.environ:
        return False
    die_with_parent()
    return True


def run_until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop until `work` ends, or until Ctrl-C or SIGTERM cancels it, which is no error; a second one kills.

    Under a supervisor the process dies with it, and a ConfigError exits with the code of what would fail again.
    """
    from omnibus.errors import ConfigError  # noqa: PLC0415
    from omnibus.workers.supervisor import FATAL_EXIT_CODE  # noqa: PLC0415

    supervised = end_with_parent()
    try:
        _run(_stoppable(work, (signal.SIGINT, signal.SIGTERM)))
    except ConfigError as error:
        if not supervised:
            raise
        sys.stderr.write(f"{error.message}\n")
        sys.exit(FATAL_EXIT_CODE)


async def _stoppable(work: Coroutine[Any, Any, T], stops: Sequence[signal.Signals]) -> tuple[T] | None:
    """Await `work`; returns its result, None when a signal cancelled it."""
    loop, stopped = asyncio.get_running_loop(), False
    task = asyncio.ensure_future(work)

    def stop() -> None:
        nonlocal stopped
        stopped = True
        task.cancel()
        for number in stops:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in stops:
        loop.add_signal_handler(number, stop)
    try:
        return (await task,)
    except asyncio.CancelledError:
        if not stopped:
            raise
        return None


async def find_pipeline(connection: Connection, wanted: str | None, *, wait: float = 0.0) -> PipelineSpec:
    """The deployed pipeline of this name (None: the one that is meant), waiting up to `wait` seconds for it; or a file's.

    Raises PipelineError.
    """
    from omnibus.errors import PipelineError  # noqa: PLC0415
    from omnibus.observability.events import LogEvent  # noqa: PLC0415
    from omnibus.observability.logging import get_logger  # noqa: PLC0415
    from omnibus.pipeline.files import is_path  # noqa: PLC0415
    from omnibus.pipeline.loading import load_pipeline  # noqa: PLC0415
    from omnibus.registry.deployed_pipelines import load_deployed  # noqa: PLC0415

    if wanted is not None and is_path(wanted):
        return load_pipeline(wanted)
    until, is_noted = time.monotonic() + wait, False
    while True:
        try:
            return await load_deployed(connection, wanted)
        except PipelineError as error:
            if time.monotonic() > until:
                raise
            if not is_noted:
                get_logger(__name__).info(LogEvent.PIPELINE_AWAITED, seconds=wait, error=error.message)
            is_noted = True
        await asyncio.sleep(_PAUSE)  # the bucket may not exist yet, and then nothing can be watched


@asynccontextmanager
async def connected(
    settings: Settings, *, role: str, stage: str | None = None, wait: float = 0.0
) -> AsyncIterator[Connection]:
    """A connection to the broker that the settings name or that is found; raises BrokerUnavailable.

    Waits up to `wait` seconds for a broker that does not run yet, so that processes may start in any order.
    """
    async with AsyncExitStack() as stack:
        yield await _connect(stack, settings, role, stage, time.monotonic() + wait)


async def _connect(stack: AsyncExitStack, settings: Settings, role: str, stage: str | None, until: float) -> Connection:
    from omnibus.broker.connection import connect  # noqa: PLC0415
    from omnibus.broker.discovery import discover  # noqa: PLC0415
    from omnibus.errors import BrokerUnavailable  # noqa: PLC0415
    from omnibus.observability.events import LogEvent  # noqa: PLC0415
    from omnibus.observability.logging import get_logger  # noqa: PLC0415

    is_noted = False
    name = os.environ.get("OMNIBUS_INSTANCE", f"omnibus-{role}-{os.getpid()}")
    while True:
        found = discover(settings)  # asked again each time: an embedded server may have started meanwhile
        connecting = connect(found.url, name=name, role=role, access=found.access, stage=stage)
        try:
            return await stack.enter_async_context(connecting)
        except BrokerUnavailable as error:
            left = until - time.monotonic()
            if left < 0:
                raise
            if not is_noted:
                get_logger(__name__).info(LogEvent.BROKER_AWAITED, seconds=round(left), error=error.message)
            is_noted = True
