"""A network that fails on demand: TCP between clients and one server, cut, delayed, or swallowed."""

from __future__ import annotations

import asyncio
import socket
import struct
from asyncio import StreamReader, StreamWriter
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

HOST = "127.0.0.1"
_CHUNK = 1 << 16
_UNDER_WAY = 64
"""Chunks that may be under way in one direction; a sender beyond them waits, as on a full link."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """Passes bytes between clients of `port` and a server, in an `async with`; unharmed at the start.

    The server may come and go: each connection is opened on its own. `url` is a broker's address with the proxy in place of
    the host. A server that tells its clients of others (a cluster) leads them past the proxy.
    """

    def __init__(self, target: str) -> None:
        """`target` is the server's URL; user and password stay in `url`."""
        self._target = urlsplit(target)
        self.port = 0
        self._delay = 0.0
        self._refuses = False
        self._passing = asyncio.Event()
        self._passing.set()
        self._links: set[_Link] = set()
        self._group = asyncio.TaskGroup()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        user, at, _ = self._target.netloc.rpartition("@")
        return self._target._replace(netloc=f"{user}{at}{HOST}:{self.port}").geturl()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._group.__aexit__(kind, error, trace)

    # What happens to the network; at once, without waiting

    def drop(self) -> None:
        """Reset every connection, once: new ones are welcome."""
        for link in tuple(self._links):
            link.reset()

    def cut(self) -> None:
        """Reset every connection, and new ones, until `heal`."""
        self._refuses = True
        self.drop()

    def black_hole(self) -> None:
        """Let nothing through until `heal`, the end of a connection neither; what was sent meanwhile arrives then."""
        self._passing.clear()

    def delay(self, seconds: float) -> None:
        """Let everything arrive this much later than it was sent, in each direction."""
        self._delay = seconds

    def heal(self) -> None:
        """Pass everything on at once again."""
        self._refuses, self._delay = False, 0.0
        self._passing.set()

    # What passes

    def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._group.create_task(self._serve(reader, writer), name="proxy-link")

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One connection, until one of its ends closes it or the network does."""
        link = _Link(writer)
        self._links.add(link)
        try:
            if self._refuses:
                return
            upstream_reader, upstream_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
            link.join(upstream_writer)
            pumps = (self._pump(reader, upstream_writer), self._pump(upstream_reader, writer))
            await link.carry(*(asyncio.create_task(pump, name="proxy-pump") for pump in pumps))
        except OSError:  # no server, or an end that was reset: so is the other
            pass
        finally:
            self._links.discard(link)
            link.reset()

    async def _pump(self, source: StreamReader, sink: StreamWriter) -> None:
        """Pass one direction on, up to its end."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDER_WAY)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read(source, under_way), name="proxy-read")
            group.create_task(self._write(under_way, sink), name="proxy-write")

    async def _read(self, source: StreamReader, under_way: asyncio.Queue[tuple[float, bytes]]) -> None:
        clock = asyncio.get_running_loop().time
        data = b"."
        while data:
            data = await source.read(_CHUNK)  # empty: the end
            await under_way.put((clock() + self._delay, data))

    async def _write(self, under_way: asyncio.Queue[tuple[float, bytes]], sink: StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(due - clock())
            await self._passing.wait()
            if not data:
                return
            sink.write(data)
            await sink.drain()


class _Link:
    """The two connections that are one to those who use it."""

    def __init__(self, client: StreamWriter) -> None:
        self._writers = [client]
        self._pumps: tuple[asyncio.Task[None], ...] = ()

    def join(self, upstream: StreamWriter) -> None:
        self._writers.append(upstream)

    async def carry(self, *pumps: asyncio.Task[None]) -> None:
        """Return at the end of one direction, in order for both; raises OSError when an end was reset."""
        self._pumps = pumps
        try:
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in done:
                if not pump.cancelled():
                    _raise_plain(pump.exception())
            for writer in self._writers:
                writer.close()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    def reset(self) -> None:
        """End both at once, and what is under way with them; idempotent."""
        for pump in self._pumps:
            pump.cancel()
        for writer in self._writers:
            if not writer.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                writer.transport.abort()


def _raise_plain(error: BaseException | None) -> None:
    """Take the exception of a pump out of its group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is not None:
        raise error
