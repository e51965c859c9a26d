"""A lean HTTP client for loads: one request at a time on one kept connection, at a tenth of a full client's CPU."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar, cast
from urllib.parse import urlsplit

import httptools

T = TypeVar("T")
_CONNECT_TIMEOUT = 10.0


class HttpClient(asyncio.Protocol):
    """One connection. An answer that is no 200, and a connection that ends, raise RuntimeError."""

    is_open = True
    """Whether another request may be sent over it: not after an answer that the server ends the connection with."""

    def __init__(self, host: str, headers: Mapping[str, str] | None = None) -> None:
        lines = {"Host": host, "Content-Type": "application/json", **(headers or {})}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser
        self._answer: asyncio.Future[bytes] | None = None
        self._body: list[bytes] = []
        self._take: Callable[[bytes], None] = self._body.append

    async def post(self, path: str, body: bytes, take: Callable[[bytes], None] | None = None) -> bytes:
        """Send JSON; returns the answer's body, or nothing where `take` gets each piece as it comes."""
        if not self.is_open:
            raise RuntimeError("the server closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._body.clear()
        self._take = take or self._body.append
        self._parser = httptools.HttpResponseParser(self)
        head = f"POST {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)
        return await self._answer

    def close(self) -> None:
        self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(RuntimeError(f"the server closed the connection: {exc}"))

    # httptools

    def on_body(self, body: bytes) -> None:
        (self._take if self._parser.get_status_code() == 200 else self._body.append)(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        assert self._answer is not None
        self.is_open = self.is_open and self._parser.should_keep_alive()
        if self._answer.done():  # its caller has given up
            return
        if status == 200:
            self._answer.set_result(b"".join(self._body))
        else:
            self._answer.set_exception(RuntimeError(f"{status}: {b''.join(self._body).decode(errors='replace')}"))


@asynccontextmanager
async def clients(url: str, count: int, headers: Mapping[str, str] | None = None) -> AsyncIterator[list[HttpClient]]:
    """Open this many connections to a server; raises OSError when there is none, or none within ten seconds."""
    parts, loop = urlsplit(url), asyncio.get_running_loop()
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if tls else 80)
    host = parts.hostname or ""
    made: list[HttpClient] = []
    try:
        for _ in range(count):
            opening = loop.create_connection(lambda: HttpClient(parts.netloc, headers), host, port, ssl=tls)
            made.append((await _in_time(opening))[1])
        yield made
    finally:
        for one in made:
            one.close()


async def _in_time(opening: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            return await opening
    except TimeoutError as error:
        raise OSError(f"no connection within {_CONNECT_TIMEOUT:g} s") from error
