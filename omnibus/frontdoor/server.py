"""The HTTP server: uvicorn on a socket of ours, for as long as a context lasts."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from omnibus.errors import ConfigError, PortTaken
from omnibus.frontdoor.http_connection import HttpConfig, HttpConnection, Limits, SocketConnection
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger

START_TIMEOUT = 10.0
BACKLOG = 2048
FILES_BESIDE_CONNECTIONS = 64
"""Open files that the process has for other things than its callers' connections."""
_TICKS_A_SECOND = 10
"""How often uvicorn calls `on_tick`."""
_log = get_logger(__name__)


class HttpServer:
    """An async context manager that serves an application.

    Port 0 takes a free one; `url` and `port` say which. `share_port`: beside other processes that do so, too. At the end it
    takes no more connections, gives the running requests `grace` seconds, and drops the rest: their callers can read them by
    id. At the start it raises the process's limit of open files as far as it may; the bound on connections is never above it.

    Raises PortTaken, or ConfigError when the address cannot be listened on. Signals are the caller's business.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        share_port: bool = False,
        grace: float = 10.0,
        limits: Limits | None = None,
    ) -> None:
        self._app, self._host, self._port, self._grace = app, host, port, grace
        self._share_port = share_port
        self._limits = limits or Limits()
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        listener = bound(self._host, self._port, share=self._share_port, listens=True)
        self._port = listener.getsockname()[1]
        room = raise_open_files() - FILES_BESIDE_CONNECTIONS
        limits = replace(self._limits, max_connections=min(self._limits.max_connections, room))
        self._server = _Server(self._app, self._grace, limits)
        self._task = asyncio.create_task(self._server.serve([listener]), name="http-server")
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._server.listening.wait()
        except BaseException:
            self._task.cancel()
            listener.close()
            raise
        _log.info(LogEvent.SERVER_STARTED, url=self.url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop listening, and wait until what runs has ended or was dropped; idempotent."""
        if self._server is None or self._task is None:
            return
        server, task = self._server, self._task
        self._server = None
        server.should_exit = True
        # uvicorn's own bound is `grace`; this one is for a uvicorn that does not keep it.
        async with asyncio.timeout(self._grace + START_TIMEOUT):
            await task
            # uvicorn cancels what outlasts the grace, and does not wait for it.
            await asyncio.gather(*server.server_state.tasks, return_exceptions=True)
        _log.info(LogEvent.SERVER_STOPPED, url=self.url)

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    async def wait(self) -> None:
        """Until the server ends by itself, which it does only by failing."""
        assert self._task is not None
        await asyncio.shield(self._task)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, that says when it listens and checks its connections each second."""

    def __init__(self, app: ASGIApp, grace: float, limits: Limits) -> None:
        super().__init__(
            HttpConfig(
                app,
                limits,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # nothing here depends on the caller's address
                timeout_graceful_shutdown=max(1, round(grace)),
            )
        )
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.listening.set()

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_A_SECOND == 0:
            now = asyncio.get_running_loop().time()
            for connection in tuple(self.server_state.connections):
                if isinstance(connection, HttpConnection | SocketConnection):
                    connection.check(now)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def raise_open_files() -> int:
    """Raise the soft limit of open files to the hard one; returns what holds now.

    Most hosts start processes with 1024, and beyond that a server can only reset connections.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # systems that have a lower limit than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft if soft != resource.RLIM_INFINITY else sys.maxsize


def bound(host: str, port: int, *, share: bool = False, listens: bool = False) -> socket.socket:
    """A socket of this address, for the caller to close; raises PortTaken, or ConfigError for another's address.

    `share`: others may have the port, too, if they do so and are of the same user.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, share)
        listener.bind((host, port))
        if listens:
            listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(
                f"port {port} on {host} is taken; choose another with --port, or, where another `omnibus serve` has it, whose "
                "front door serves all pipelines, leave it out with `omnibus serve --no-frontdoor`",
                param="port",
            ) from error
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}", param="host") from error
    return listener
