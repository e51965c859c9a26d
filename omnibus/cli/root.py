"""The root of a command at work: its settings, its loop, its way out, its connection, and the pipeline that it means."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import click
import uvloop
from pydantic import ValidationError

import omnibus.observability.lean_structlog  # noqa: F401 before anything imports structlog
from omnibus.broker.connection import Connection, connect
from omnibus.broker.discovery import discover
from omnibus.cli.options import SETTING
from omnibus.cli.streams import outlive_readers
from omnibus.client.producer import Producer
from omnibus.errors import BrokerUnavailable, ConfigError, OmnibusError, PipelineError
from omnibus.garbage import settle_garbage
from omnibus.lineage import PARENT_VARIABLE, die_with_parent
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import configure_logging, get_logger
from omnibus.observability.tracing import Tracing
from omnibus.payloads.transports import Transports
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.deployed_pipelines import load_deployed
from omnibus.settings import Settings
from omnibus.workers.supervisor import FATAL_EXIT_CODE

_PAUSE = 0.25
T = TypeVar("T")
SETTLED_AFTER = 3.0
"""Seconds after which a process has imported and made what it keeps."""
START_WAIT = 60.0
"""Seconds that a long-lived process waits for its broker when it starts."""
Wanted = str | PipelineSpec | None
"""The value of `--pipeline`: a name, the content of a file, or nothing."""


def load_settings() -> Settings:
    """Settings of the environment, overridden by the options that the command line has.

    Raises ConfigError naming the setting that cannot be read.
    """
    context = click.get_current_context(silent=True)
    noted = context.meta if context is not None else {}
    known = {name.removeprefix(SETTING): value for name, value in noted.items() if name.startswith(SETTING)}
    try:
        return Settings(**known)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ConfigError(f"OMNIBUS_{name.upper()}: {first['msg']}", param=name) from error


def start_logging(settings: Settings) -> None:
    """Logs of a long-lived process, on stderr. It goes on when nobody reads what it prints any more."""
    outlive_readers()
    configure_logging(settings.log_level, settings.log_format, for_good=True)


def ask(work: Coroutine[Any, Any, T]) -> T:
    """`run` for a command that asks and ends: it logs warnings only."""
    configure_logging("warning", "console")
    return run(work)


def run(work: Coroutine[Any, Any, T], *stops: signal.Signals) -> T:
    """Run to the end on uvloop. Ctrl-C and `stops` cancel `work` and raise KeyboardInterrupt; a second one kills."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_stoppable(work, (signal.SIGINT, *stops)))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def end_with_parent() -> bool:
    """Have this process die with the one that started it, when that one asks for it; whether it does."""
    if PARENT_VARIABLE not in os.environ:
        return False
    die_with_parent()
    return True


def run_until_stopped(settings: Settings, work: Coroutine[Any, Any, None]) -> None:
    """Run a long-lived process until `work` ends, or Ctrl-C or SIGTERM cancels it, which is no error; a second one kills.

    Under a supervisor the process dies with it, and a ConfigError exits with the code of what would fail again.
    """
    start_logging(settings)
    supervised = end_with_parent()
    try:
        run(work, signal.SIGTERM)
    except KeyboardInterrupt:
        return
    except ConfigError as error:
        if not supervised:
            raise
        sys.stderr.write(f"{error.message}\n")
        sys.exit(FATAL_EXIT_CODE)


async def _stoppable(work: Coroutine[Any, Any, T], stops: tuple[signal.Signals, ...]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

    def stop() -> None:
        task.cancel()
        for number in stops:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in stops:
        loop.add_signal_handler(number, stop)
    loop.call_later(SETTLED_AFTER, settle_garbage)
    return await task


async def find_pipeline(connection: Connection, wanted: Wanted, *, wait: float = 0.0) -> PipelineSpec:
    """The deployed pipeline of this name (None: the one that is meant), waiting up to `wait` seconds for it; or a file's.

    Raises PipelineError.
    """
    if wanted is not None and not isinstance(wanted, str):
        return wanted
    # The bucket may not exist yet, and then nothing can be watched.
    return await _again(lambda: load_deployed(connection, wanted), PipelineError, LogEvent.PIPELINE_AWAITED, wait)


@asynccontextmanager
async def connected(
    settings: Settings, *, role: str, stage: str | None = None, wait: float = 0.0, tracing: Tracing | None = None
) -> AsyncIterator[Connection]:
    """A connection to the broker that the settings name or that is found; raises BrokerUnavailable.

    Waits up to `wait` seconds for a broker that does not run yet, so that processes may start in any order.
    """
    name = os.environ.get("OMNIBUS_INSTANCE", f"omnibus-{role}-{os.getpid()}")

    def opening() -> Awaitable[Connection]:
        found = discover(settings)  # asked again each time: an embedded server may have started meanwhile
        connecting = connect(found.url, name=name, role=role, access=found.access, stage=stage)
        return stack.enter_async_context(connecting)

    async with AsyncExitStack() as stack:
        connection = await _again(opening, BrokerUnavailable, LogEvent.BROKER_AWAITED, wait)
        connection.tracing = tracing or connection.tracing
        yield connection


async def on_broker(settings: Settings, role: str, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Do something with a connection that is opened for it; raises BrokerUnavailable."""
    async with connected(settings, role=role) as connection:
        return await work(connection)


async def _again(work: Callable[[], Awaitable[T]], expected: type[OmnibusError], event: LogEvent, wait: float) -> T:
    """Try again for up to `wait` seconds while the expected error comes; the first time it is logged."""
    until, is_noted = time.monotonic() + wait, False
    while True:
        try:
            return await work()
        except expected as error:
            if time.monotonic() > until:
                raise
            if not is_noted:
                get_logger(__name__).info(event, seconds=wait, error=error.message)
            is_noted = True
        await asyncio.sleep(_PAUSE)


@dataclass(frozen=True, slots=True)
class CommandSession:
    """The connection and the settings of a command that asks or changes something."""

    settings: Settings
    connection: Connection
    producer: Producer
    wanted: Wanted

    async def spec(self) -> PipelineSpec:
        """The pipeline that is meant; raises PipelineError, also for a file's that is not deployed."""
        spec = await find_pipeline(self.connection, self.wanted)
        if spec is self.wanted:
            await load_deployed(self.connection, spec.name)
        return spec


@asynccontextmanager
async def open_session(settings: Settings, role: str, wanted: Wanted) -> AsyncIterator[CommandSession]:
    """A session, as long as the context lasts; raises BrokerUnavailable."""
    async with connected(settings, role=role) as connection, Producer(connection, Transports.of(settings)) as producer:
        yield CommandSession(settings, connection, producer, wanted)
