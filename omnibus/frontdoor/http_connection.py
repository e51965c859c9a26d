"""One connection of the HTTP server: uvicorn's, with deadlines, WebSockets, other upgrades refused and answers to HTTP/1.0.

A request that never becomes complete ends with 408, an answer that nobody reads ends with its connection. `check`, which the
server calls each second, decides that: a timer a request would cost every request.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import httptools
import uvicorn
from starlette.responses import Response
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from omnibus.errors import InvalidRequest, OmnibusError
from omnibus.frontdoor.error_answers import RequestTimeout, TooManyConnections, error_response
from omnibus.frontdoor.headers import GONE

MIN_BODY_PROGRESS = 1024
"""Bytes of a body that must arrive within `body_timeout`: less is taken for a client that holds the connection."""
_NO_UPGRADE = frozenset({b"upgrade", b"http2-settings"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of the server's connections. Durations are seconds."""

    max_connections: int = 8192
    """One more is answered with 503 and closed."""
    keep_alive: int = 75
    """An idle connection is closed after that: later than pools of proxies and clients drop theirs."""
    header_timeout: float = 10.0
    """From the first byte of a request to the end of its headers."""
    body_timeout: float = 10.0
    """A body that makes no progress for so long ends."""
    unread_timeout: float = 60.0
    """A client that takes nothing of its answer for so long counts as gone."""
    max_message: int = 16 * 1024 * 1024
    """Bytes of a message of a WebSocket; a longer one closes it."""
    ping_interval: float = 20.0
    """A WebSocket is asked so often whether its client is there, and closed when that does not answer for as long."""


class HttpConfig(uvicorn.Config):
    """uvicorn's configuration with the limits of connections."""

    def __init__(self, app: Any, limits: Limits, **options: Any) -> None:
        super().__init__(
            app, http=HttpConnection, timeout_keep_alive=limits.keep_alive, ws=SocketConnection,
            ws_max_size=limits.max_message, ws_ping_interval=limits.ping_interval, ws_ping_timeout=limits.ping_interval,
            ws_per_message_deflate=False, **options,
        )  # fmt: skip
        self.limits = limits


class _Unread:
    """Notices that a client takes nothing of what is sent to it."""

    def __init__(self, now: float) -> None:
        self._bytes, self._since = 0, now

    def seconds(self, transport: asyncio.Transport, now: float) -> float:
        """Seconds for which nothing was taken of what waits to be."""
        unread = transport.get_write_buffer_size()
        if not unread or unread < self._bytes:
            self._since = now
        self._bytes = unread
        return now - self._since


class SocketConnection(WebSocketsSansIOProtocol):
    """A WebSocket whose client must read."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._unread = _Unread(self.loop.time())

    async def send(self, message: Any) -> None:
        await super().send(message)
        # uvicorn takes a handshake that was answered with an error for one that was left open, and logs each as a failure.
        self.handshake_complete |= self.close_sent

    def check(self, now: float) -> None:
        """End the connection of a client that has stopped reading."""
        if self._unread.seconds(self.transport, now) > cast("HttpConfig", self.config).limits.unread_timeout:
            self.transport.abort()


class HttpConnection(HttpToolsProtocol):
    """A connection whose client must make progress."""

    config: HttpConfig

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._request_began: float | None = None
        """When the first byte of a request came that is not complete; None between requests."""
        self._body_window: float | None = None
        """Since when bytes of a body are counted; None while there is no body to wait for."""
        self._body_bytes = 0
        self._unread = _Unread(self.loop.time())
        self._gone: asyncio.Future[None] = self.loop.create_future()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.config.limits.max_connections:
            self.refuse(TooManyConnections())
            return
        # A client that sends nothing at all has as long as one that sends nothing more.
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self._gone.done():
            self._gone.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._request_began is None:
            self._request_began = self.loop.time()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._decline_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("this is not HTTP/1")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._request_began = self.loop.time()

    def on_headers_complete(self) -> None:
        if self._is_declined():
            return
        super().on_headers_complete()
        self._body_window, self._body_bytes = self.loop.time(), 0

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_declined():
            return
        self._request_began = self._body_window = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self.refuse(InvalidRequest(msg))

    def refuse(self, error: OmnibusError) -> None:
        """Answer with an error where no answer has begun, and close."""
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            self.transport.write(_raw(error_response(error)))
        self.transport.close()

    def check(self, now: float) -> None:
        """End the connection when its client keeps neither of the deadlines."""
        if self._unread.seconds(self.transport, now) > self.config.limits.unread_timeout:
            self.transport.abort()
        elif not self.transport.is_closing() and self._is_late(now):
            self.refuse(RequestTimeout())

    def _is_late(self, now: float) -> bool:
        if self._request_began is None:
            return False
        limits = self.config.limits
        if self._body_window is None:  # headers; behind a running request they are looked at when it has ended
            is_idle = self.cycle is None or self.cycle.response_complete
            return is_idle and now - self._request_began > limits.header_timeout
        if now - self._body_window <= limits.body_timeout:
            return False
        made_progress = self.flow.read_paused or self._body_bytes >= MIN_BODY_PROGRESS
        self._body_window, self._body_bytes = now, 0
        return not made_progress

    def _should_upgrade(self) -> bool:
        """Whether a WebSocket begins; anything but GET that offers one is served as if it did not."""
        return bool(self.parser.get_method() == b"GET" and super()._should_upgrade())

    def _is_declined(self) -> bool:
        return self.parser.should_upgrade() and not self._should_upgrade()

    def _decline_upgrade(self, rest: bytes) -> None:
        """Serve a request that offers another protocol as if it offered none.

        The parser stops at such an offer before the body: another one begins with the same head, without the offer.
        """
        if self.parser.get_method() == b"CONNECT":
            self.send_400_response("this is no proxy")
            return
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            if name not in _NO_UPGRADE:
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        scope = cast("Scope", cycle.scope)
        scope[GONE] = self._gone
        if scope["http_version"] == "1.0":
            app = _until_close(cycle, app)
        super()._start_asgi_task(cycle, app)


def _until_close(cycle: RequestResponseCycle, app: Any) -> Any:
    """Let a body of unknown length end with its connection: HTTP/1.0 has no chunks."""

    is_open_ended = False

    async def send(message: Any) -> None:
        nonlocal is_open_ended
        if message["type"] == "http.response.start":
            is_open_ended = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
            if is_open_ended:
                cycle.chunked_encoding, cycle.expected_content_length = False, sys.maxsize
        elif is_open_ended and not message.get("more_body", False):
            cycle.expected_content_length = len(message.get("body", b""))
        await cycle.send(message)

    async def wrapped(scope: Any, receive: Callable[[], Awaitable[Any]], _send: Any) -> None:
        await app(scope, receive, send)

    return wrapped


def _raw(response: Response) -> bytes:
    """A response as bytes, for a connection without a request."""
    head = [STATUS_LINE[response.status_code]]
    for name, value in (*response.raw_headers, (b"connection", b"close")):
        head += [name, b": ", value, b"\r\n"]
    return b"".join([*head, b"\r\n", bytes(response.body)])
