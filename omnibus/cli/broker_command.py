"""Commands that connect to a broker, ask or change something, and end."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from omnibus.cli import options

if TYPE_CHECKING:
    from omnibus.cli.root import Wanted

Work = Callable[..., Awaitable[int | None]]


def broker_command(
    role: str | Callable[..., str], *, pipeline: bool = True
) -> Callable[[Work], Callable[..., int | None]]:
    """Make a command's callback of an async function: it takes a CommandSession, and then what the command line says.

    `role` chooses the credentials where there are several: a name, or a function of what the command line says.
    The command gets `--nats` and `--state-dir`, and `--pipeline` unless it names pipelines otherwise.
    """

    def decorate(work: Work) -> Callable[..., int | None]:
        @functools.wraps(work)
        def callback(*, pipeline: Wanted = None, **arguments: Any) -> int | None:
            from omnibus.cli.root import ask, load_settings, open_session  # noqa: PLC0415 commands import when they run

            settings = load_settings()

            async def run() -> int | None:
                needed = role if isinstance(role, str) else role(**arguments)
                async with open_session(settings, needed, pipeline) as session:
                    return await work(session, **arguments)

            return ask(run())

        return options.together(*([options.pipeline] if pipeline else []), options.broker)(callback)

    return decorate
