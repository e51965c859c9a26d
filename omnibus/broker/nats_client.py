"""nats-py's client with its two hot paths replaced: receiving and sending.

nats-py connects, signs in, reconnects and pings. A message passes neither its parser nor its queues nor a task: the listener is
called in the turn of the loop in which the last byte arrived. What is sent leaves joined: with everything else of the same turn,
or of TICK seconds while many requests are under way.
"""

from __future__ import annotations

import asyncio
import importlib
import math
import ssl
from collections.abc import Mapping, Sized
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import ParseResult

import nats.aio.client
import nats.aio.subscription
import nats.aio.transport
import nats.errors
from nats.aio.transport import TcpTransport, WebSocketTransport

from omnibus.broker.message_reader import Listener, MessageReader

nats.aio.client.DEFAULT_BUFFER_SIZE = 1 << 20  # doubles the throughput of messages from 64 KiB to 1 MiB

TICK = 0.001
"""Seconds that a message may wait for others while many requests are under way."""
BUSY = 6
"""Requests under way from which on messages wait for others. Below it they leave at the end of the loop's turn."""
MOST_BUFFERED = 16 << 20
"""Bytes that may wait to be sent; senders that can wait do so beyond it, and while disconnected they are refused."""
_LARGEST_BATCH = 64 << 10
"""Bytes that are worth a write of their own."""
_SPACE = nats.aio.client._SUBJECT_INVALID_RE  # noqa: SLF001 it has no public name
_KEY = nats.aio.client._HEADER_KEY_RE  # noqa: SLF001
_LINE_ENDS = str.maketrans("\r\n", "  ")


class _Transport(TcpTransport):  # type: ignore[misc] # untyped
    """A TCP connection, or one with TLS, whose messages go to listeners."""

    def __init__(self, listeners: Mapping[bytes, Listener]) -> None:
        super().__init__()
        self._listeners = listeners
        self.out: Any = None
        """The loop's transport."""

    def __bool__(self) -> bool:
        return True  # or nats-py would put its own in its place

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: float) -> None:
        reader, protocol = self._ends(buffer_size, asyncio.StreamReaderProtocol)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(connect_timeout):
            transport, _ = await loop.create_connection(lambda: protocol, uri.hostname or "", uri.port or 0)
        self._bare_io_reader, self._bare_io_writer = self._use(
            reader, protocol, transport
        )  # kept for as long as TLS is

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: float
    ) -> None:
        reader, protocol = self._ends(buffer_size, _OverTls)
        name = uri if isinstance(uri, str) else uri.hostname
        async with asyncio.timeout(connect_timeout):
            transport = await asyncio.get_running_loop().start_tls(
                self._io_writer.transport, protocol, ssl_context, server_hostname=name
            )
        self._use(reader, protocol, transport)

    def _ends(
        self, limit: int, kind: type[asyncio.StreamReaderProtocol]
    ) -> tuple[MessageReader, asyncio.StreamReaderProtocol]:
        reader = MessageReader(self._listeners, limit)
        return reader, kind(reader)

    def _use(
        self, reader: MessageReader, protocol: asyncio.StreamReaderProtocol, transport: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        transport.set_write_buffer_limits(high=MOST_BUFFERED)
        self.out, self._io_reader = transport, reader
        self._io_writer = asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())
        return self._io_reader, self._io_writer


class _OverTls(asyncio.StreamReaderProtocol):
    """The protocol of a connection that became TLS: asyncio's own takes it for plain TCP, and warns at each end of it."""

    def eof_received(self) -> bool:
        """Have the transport close, as under TLS it must."""
        super().eof_received()
        return False


class _WebSocket(WebSocketTransport):  # type: ignore[misc] # untyped
    """A WebSocket whose messages go to listeners: nats-py reads control lines alone."""

    def __init__(self, listeners: Mapping[bytes, Listener]) -> None:
        super().__init__()
        self._reader = MessageReader(listeners, nats.aio.client.DEFAULT_BUFFER_SIZE)
        self._lines_read = 0

    async def readline(self) -> bytes:
        """Read a control line; empty when the connection has ended. Raises ProtocolError."""
        while self._lines_read == self._reader.lines and self._reader.exception() is None:
            frame = await super().readline()
            if not frame:
                return b""
            self._reader.feed_data(frame)
        self._lines_read += 1
        return await self._reader.readline()


class NatsClient(nats.aio.client.Client):  # type: ignore[misc] # untyped
    """The client of one connection. `waiting` are the requests under way: their number tells whether much goes on."""

    def __init__(self, waiting: Sized) -> None:
        super().__init__()
        self._transport: Any = None
        self._tcp: _Transport | None = None
        """The transport, unless it is a WebSocket, which has a queue of its own."""
        self._waiting = waiting
        self._listeners: dict[bytes, Listener] = {}
        self._batch: list[bytes] = []
        self._batched = 0
        self._is_due = False
        self._draining: asyncio.Task[None] | None = None
        self.is_full = False
        """Whether more waits to be sent than MOST_BUFFERED, as of the last write: await `room`."""

    def publish_now(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None, reply: str = "") -> None:
        """Send a message, after all that was sent before; while disconnected it is kept, and sent afterwards.

        Raises an error of nats-py's when it is malformed or too large, the connection is closed, or the buffer is full.
        """
        if not subject or _SPACE.search(subject) or _SPACE.search(reply):
            raise nats.errors.BadSubjectError
        head = _head(headers) if headers else b""
        size = len(head) + len(data)
        if size > self._max_payload:
            raise nats.errors.MaxPayloadError
        if head:
            self._send(
                b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject.encode(), reply.encode(), len(head), size, head, data)
            )
        else:
            self._send(b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), size, data))

    def listen(self, subject: str, queue: str, listener: Listener) -> int:
        """Call `listener`, which must not raise, with each message on a subject; returns the id of the subscription.

        Raises an error of nats-py's.
        """
        nats.aio.client._validate_subject(subject, strict=True)  # noqa: SLF001
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        self._sid += 1
        # nats-py subscribes anew by what it finds there when it has reconnected.
        self._subs[self._sid] = nats.aio.subscription.Subscription(self, self._sid, subject, queue=queue)
        self._listeners[b"%d" % self._sid] = listener
        if self.is_connected:
            self._command(f"SUB {subject} {queue} {self._sid}\r\n".encode())
        return int(self._sid)

    def stop_sending(self, sid: int) -> None:
        """Have the server send no more of a subscription."""
        if self._subs.pop(sid, None) is not None and self.is_connected:
            self._command(b"UNSUB %d\r\n" % sid)

    def forget(self, sid: int) -> None:
        """Call its listener no more."""
        self.stop_sending(sid)
        self._listeners.pop(b"%d" % sid, None)

    async def pinged(self, timeout: float) -> None:
        """Return when the server has read all that was sent, and what it sent before has been listened to.

        Raises FlushTimeoutError, and ConnectionError when the connection breaks.
        """
        if not self.is_connected:
            raise ConnectionResetError("not connected")
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        await self._send_ping(pong)
        await asyncio.wait(
            (pong,), timeout=timeout
        )  # it must not be cancelled: nats-py would stop reading at its answer
        if not pong.done():
            raise nats.errors.FlushTimeoutError
        if not pong.result():
            raise ConnectionResetError("the connection broke")

    async def room(self) -> None:
        """Wait until little waits to be sent; raises ConnectionError when the connection breaks."""
        if self._transport is not None:
            await self._transport.drain()
        self.is_full = False

    def broken(self) -> None:
        """The connection is gone: drop what was not written, and fail those who wait for it to be read."""
        self._batch.clear()
        self._batched, self.is_full = 0, False
        for pong in self._pongs:
            if not pong.done():
                pong.set_result(False)
        self._pongs.clear()

    def _command(self, command: bytes) -> None:
        """Send what is no message.

        Invariant: it is never refused. nats-py would read, or ping, no more, and nobody would notice a server that takes
        nothing; a closed socket is noticed by its reader, and subscriptions are renewed.
        """
        with suppress(ConnectionError):
            self._send(command, most=math.inf)

    def _send(self, command: bytes, *, most: float = 2 * MOST_BUFFERED) -> None:
        """Raises OutboundBufferLimitError when more than `most` bytes wait."""
        if self._status != self.CONNECTED or self._pending:
            self._keep(command)
            return
        if (tcp := self._tcp) is not None:
            if tcp.out.is_closing():
                raise ConnectionResetError("its socket is closed")
            if self.is_full and tcp.out.get_write_buffer_size() + self._batched > most:
                raise nats.errors.OutboundBufferLimitError
        self._batch.append(command)
        self._batched += len(command)
        if self._batched >= _LARGEST_BATCH:
            self._write()
        elif not self._is_due:
            self._is_due = True
            loop = asyncio.get_running_loop()
            if len(self._waiting) < BUSY:
                loop.call_soon(self._write_due)
            else:
                loop.call_later(TICK, self._write_due)

    def _keep(self, command: bytes) -> None:
        """Keep it until the connection is back."""
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        if self._pending_data_size + len(command) > self._max_pending_size:
            raise nats.errors.OutboundBufferLimitError
        self._pending.append(command)
        self._pending_data_size += len(command)

    def _write_due(self) -> None:
        self._is_due = False
        self._write()

    def _write(self) -> None:
        """Write what has gathered. A socket that is closed takes nothing any more, as if it were lost on the way."""
        if not self._batch:
            return
        data = b"".join(self._batch)
        self._batch.clear()
        self._batched = 0
        if (tcp := self._tcp) is None:
            self._transport.write(data)
            self._draining = asyncio.create_task(self._drain_web_socket(), name="nats-websocket")
        elif not tcp.out.is_closing():
            tcp.out.write(data)
            self.is_full = tcp.out.get_write_buffer_size() > MOST_BUFFERED

    async def _drain_web_socket(self) -> None:
        with suppress(ConnectionError):  # its reader notices
            await self._transport.drain()

    # Parts of nats-py's that are replaced

    async def _connect_to_server(self, server: Any) -> None:
        if server.uri.scheme in ("ws", "wss"):
            _allow_web_sockets()
            self._transport = self._transport or _WebSocket(self._listeners)
        elif self._tcp is None:
            self._transport = self._tcp = _Transport(self._listeners)
        await super()._connect_to_server(server)

    async def _attempt_reconnect(self) -> None:
        """The connection is gone with all that it did not take: nats-py would wait until that is sent, without a deadline."""
        if self._tcp is not None:
            self._tcp.out.abort()
        await super()._attempt_reconnect()

    def _connect_command(self) -> bytes:
        """nats-py would sign in to a server without TLS though TLS was asked for."""
        wanted = "tls" in self.options or (
            self._current_server is not None and self._current_server.uri.scheme == "tls"
        )
        if wanted and not self._server_info.get("tls_required") and not self._server_info.get("tls_available"):
            raise nats.errors.Error("the server offers no TLS, which its URL or the credentials ask for")
        command: bytes = super()._connect_command()
        return command

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        """Invariant: pings leave in the order of their futures, behind all that was sent before."""
        self._pongs.append(future if future is not None else asyncio.get_running_loop().create_future())
        self._command(b"PING\r\n")

    async def _send_command(self, cmd: bytes, priority: bool = False) -> None:  # noqa: ARG002
        self._command(bytes(cmd))

    async def _flush_pending(self, force_flush: bool = False) -> None:  # noqa: ARG002
        """Send what was kept while disconnected, after the subscriptions that nats-py has renewed.

        Raises ConnectionError when the new socket breaks meanwhile: what was not written to it is kept for the next one.
        """
        if not self.is_connected:
            return
        kept = tuple(self._pending)
        self._pending.clear()
        self._pending_data_size = 0
        for number, command in enumerate(kept):
            try:
                self._send(command, most=math.inf)
            except ConnectionError:
                self._pending[:] = (*self._batch, *kept[number:])
                self._pending_data_size = sum(map(len, self._pending))
                self._batch.clear()
                self._batched = 0
                raise

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        if self.is_connected:
            self._write()
            if self._draining is not None:
                await asyncio.wait((self._draining,))
        await super()._close(status, do_cbs)
        self._listeners.clear()


def _allow_web_sockets() -> None:
    """Give nats-py what this package kept it from importing; where that is not installed, it says so."""
    with suppress(ImportError):
        nats.aio.transport.aiohttp = importlib.import_module("aiohttp")
        nats.aio.transport.multidict = importlib.import_module("multidict")


@lru_cache(maxsize=256)
def _key(name: str) -> str:
    if not _KEY.fullmatch(name):
        raise nats.errors.BadHeaderError(name)
    return name


def _head(headers: Mapping[str, str]) -> bytes:
    lines = [f"{_key(name)}: {_one_line(value)}\r\n" for name, value in headers.items()]
    return f"NATS/1.0\r\n{''.join(lines)}\r\n".encode()


def _one_line(value: str) -> str:
    return (value if value.isprintable() else value.translate(_LINE_ENDS)).strip()
