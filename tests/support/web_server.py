"""A web server on loopback, whose answers a test gives by path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class WebServer:
    """The server's address, and the paths that were asked for."""

    url: str = ""
    port: int = 0
    asked: list[str] = field(default_factory=list)


def body(data: bytes, media_type: str) -> Answer:
    """An answer that is a file."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=data, content_type=media_type)

    return answer


def redirect(to: str) -> Answer:
    """An answer that sends elsewhere."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": to})

    return answer


def endless(piece: bytes = b"x" * 65536) -> Answer:
    """An answer without an end and without a length."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(piece)

    return answer


async def silence(_request: web.Request) -> web.StreamResponse:
    """No answer at all, for longer than anybody waits."""
    await asyncio.Event().wait()
    raise AssertionError


@asynccontextmanager
async def web_server(answers: Mapping[str, Answer]) -> AsyncIterator[WebServer]:
    """Serve these paths; any other is a 404."""
    made = WebServer()

    async def handle(request: web.Request) -> web.StreamResponse:
        made.asked.append(request.path)
        answer = answers.get(request.path)
        return web.Response(status=404) if answer is None else await answer(request)

    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        made.port = runner.addresses[0][1]
        made.url = f"http://127.0.0.1:{made.port}"
        yield made
    finally:
        await runner.cleanup()
