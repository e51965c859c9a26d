"""Commands that connect to a broker, ask or change something, and end."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omnibus.cli import options
from omnibus.cli.root import ask, connected, find_pipeline, load_settings

if TYPE_CHECKING:
    from omnibus.broker.connection import Connection
    from omnibus.client.producer import Producer
    from omnibus.pipeline.spec import PipelineSpec
    from omnibus.settings import Settings

Work = Callable[..., Awaitable[int | None]]


@dataclass(frozen=True, slots=True)
class CommandSession:
    """The connection and the settings of such a command."""

    settings: Settings
    connection: Connection
    producer: Producer
    wanted: str | None
    """The value of `--pipeline`."""

    async def spec(self) -> PipelineSpec:
        """The pipeline that is meant; raises PipelineError, also for a file's that is not deployed."""
        from omnibus.pipeline.files import is_path  # noqa: PLC0415 commands import when they run
        from omnibus.registry.deployed_pipelines import load_deployed  # noqa: PLC0415 commands import when they run

        spec = await find_pipeline(self.connection, self.wanted)
        if self.wanted is not None and is_path(self.wanted):
            await load_deployed(self.connection, spec.name)
        return spec


def broker_command(role: str, *, pipeline: bool = True) -> Callable[[Work], Callable[..., int | None]]:
    """Make a command's callback of an async function: it takes a CommandSession, and then what the command line says.

    The command gets `--nats` and `--state-dir`, and `--pipeline` unless it names pipelines otherwise.
    """

    def decorate(work: Work) -> Callable[..., int | None]:
        @functools.wraps(work)
        def callback(*, nats_url: Any, state_dir: Any, pipeline: str | None = None, **arguments: Any) -> int | None:
            settings = load_settings(nats_url=nats_url, state_dir=state_dir)
            return ask(_run(work, settings, role, pipeline, arguments))

        shared = [options.state_dir, options.nats, *([options.pipeline] if pipeline else [])]
        return functools.reduce(lambda command, option: option(command), shared, callback)

    return decorate


@asynccontextmanager
async def open_session(settings: Settings, role: str, pipeline: str | None) -> AsyncIterator[CommandSession]:
    """A session, as long as the context lasts; raises BrokerUnavailable."""
    from omnibus.client.producer import Producer  # noqa: PLC0415 commands import when they run

    async with connected(settings, role=role) as connection, Producer(connection) as producer:
        yield CommandSession(settings, connection, producer, pipeline)


async def _run(
    work: Work, settings: Settings, role: str, pipeline: str | None, arguments: dict[str, Any]
) -> int | None:
    async with open_session(settings, role, pipeline) as session:
        return await work(session, **arguments)
