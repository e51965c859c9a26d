"""The root of a command: its settings, its loop, its way out, and its connection."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from omnibus.broker.connection import Connection
    from omnibus.observability.metrics import Metrics
    from omnibus.settings import Settings

T = TypeVar("T")
_STOPS = (signal.SIGINT, signal.SIGTERM)


def load_settings(**flags: Any) -> Settings:
    """Settings of the environment, overridden by the flags that were given (those that are not None).

    Raises ConfigError naming the setting that cannot be read.
    """
    from pydantic import ValidationError  # noqa: PLC0415 commands import when they run

    from omnibus.errors import ConfigError  # noqa: PLC0415
    from omnibus.settings import Settings  # noqa: PLC0415

    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ConfigError(f"OMNIBUS_{name.upper()}: {first['msg']}", param=name) from error


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on uvloop. Ctrl-C cancels `work` and raises KeyboardInterrupt."""
    import uvloop  # noqa: PLC0415

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def run_until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop until `work` ends, or until Ctrl-C or SIGTERM cancels it, which is no error; a second one kills."""
    run(_stoppable(work))


async def _stoppable(work: Coroutine[Any, Any, None]) -> None:
    loop, stopped = asyncio.get_running_loop(), False
    task = asyncio.ensure_future(work)

    def stop() -> None:
        nonlocal stopped
        stopped = True
        task.cancel()
        for number in _STOPS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in _STOPS:
        loop.add_signal_handler(number, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not stopped:
            raise


@asynccontextmanager
async def connected(settings: Settings, *, role: str, metrics: Metrics | None = None) -> AsyncIterator[Connection]:
    """A connection to the broker that the settings name or that is found; raises BrokerUnavailable."""
    from omnibus.broker.connection import connect  # noqa: PLC0415
    from omnibus.broker.discovery import discover  # noqa: PLC0415

    url = discover(settings).url
    async with connect(
        url, name=f"omnibus-{role}", role=role, credentials=settings.nats_credentials, metrics=metrics
    ) as connection:
        yield connection
