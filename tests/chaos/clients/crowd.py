"""All clients of a scenario at once, each sending its next request when the last one is answered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import httpx

from omnibus.client.producer import Producer
from tests.chaos.clients import http, nats, sessions
from tests.chaos.clients.planned_request import Note, RequestArguments, Size, Wish
from tests.chaos.history import History
from tests.chaos.setups import Arena
from tests.support.breaking_http import breaking_http
from tests.support.waiting import eventually

_POOL = 200
_SMALL_BUFFER = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]


class Crowd:
    """Clients of every way in, in an `async with`; leaving it waits until each knows the end of its last request."""

    def __init__(
        self, arena: Arena, history: History, arguments: RequestArguments, *, size: Size | None = None, label: str = ""
    ) -> None:
        """`label` begins the names of all operations: no other scenario of the same system may have it."""
        self._arena, self._history, self._wishes = arena, history, arguments
        self._size = size or arena.size
        self._label = label
        self._finishing = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._stack = AsyncExitStack()
        self._count = 0
        self.told = 0
        """Operations whose clients know the end, or the acceptance where that is all a client waits for."""

    async def __aenter__(self) -> Self:
        cluster = self._arena.cluster
        limits = httpx.Limits(max_connections=_POOL)
        self._http = await self._stack.enter_async_context(breaking_http(cluster.url, limits=limits))
        slow = breaking_http(cluster.url, socket_options=_SMALL_BUFFER)
        self._slow = await self._stack.enter_async_context(slow)
        self._producer = await self._stack.enter_async_context(Producer(cluster.connection))
        await self._group.__aenter__()
        size = self._size
        for front_door, count in (
            ("http-stream", size.http_stream), ("http", size.http), ("python", size.python),
            ("session", size.session), ("session-http", size.session_http),
        ):  # fmt: skip
            for _ in range(count):
                self._group.create_task(self._keep_asking(front_door, 0.0), name=f"client-{front_door}")
        for _ in range(size.raw):
            self._group.create_task(self._keep_asking("raw", size.raw_pause), name="client-raw")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finishing.set()
        try:
            await self._group.__aexit__(kind, error, trace)
        finally:
            await self._stack.aclose()

    async def more(self, count: int) -> None:
        """Return once `count` more operations are over."""
        enough = self.told + count
        within = self._arena.within
        await eventually(lambda: self.told >= enough, within, what=f"{count} more operations, {self.told} are over")

    def finish(self) -> None:
        """Begin nothing new."""
        self._finishing.set()

    def also(self, front_door: str, wish: Callable[[str], Wish]) -> asyncio.Task[None]:
        """One more operation, beside the rest."""
        return self._group.create_task(self.once(front_door, wish(self._name())), name=f"client-{front_door}")

    async def once(self, front_door: str, wish: Wish) -> None:
        """One operation, to its end as its client sees it."""
        note = Note(self._history, wish, front_door, within=self._arena.within)
        await self._enter(front_door, note)
        self.told += 1

    def _enter(self, front_door: str, note: Note) -> Coroutine[Any, Any, None]:
        cluster = self._arena.cluster
        match front_door:
            case "http-stream":
                return http.stream(self._http, note, cluster.spec.name)
            case "http-slow":
                return http.stream(self._slow, note, cluster.spec.name)
            case "http":
                return http.ask(self._http, note, cluster.spec.name)
            case "python":
                return nats.produce(self._producer, note, cluster.spec)
            case "session":
                return sessions.converse(self._producer, note, cluster.spec)
            case "session-http":
                return sessions.converse_over_http(self._http, note, cluster.spec.name)
            case "raw":
                return nats.publish(cluster.connection, note, cluster.spec.name)
        raise ValueError(front_door)

    async def _keep_asking(self, front_door: str, pause: float) -> None:
        while not self._finishing.is_set():
            await self.once(front_door, self._wishes(self._name()))
            await asyncio.sleep(pause)

    def _name(self) -> str:
        self._count += 1
        return f"{self._label}-{self._count}"
