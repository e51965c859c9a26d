"""A proxy before nats-server that counts the messages of each connection, by what the protocol says on the wire."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

_NAME = re.compile(rb'"name":\s*"([^"]*)"')
_FROM_CLIENT = (b"PUB", b"HPUB")
_FROM_SERVER = (b"MSG", b"HMSG")


class WireCounter:
    """The counts so far, by connection name and direction: `sent` by the client, `received` by it."""

    def __init__(self) -> None:
        self.messages: Counter[tuple[str, str]] = Counter()
        self.writes: Counter[str] = Counter()
        """Pieces of the stream as they came from a client: not every message need cost one."""

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
        """Carry one connection both ways until either side ends."""
        to_server_reader, to_server = await asyncio.open_connection(host, port)
        names = [""]
        ways = (
            asyncio.create_task(self._carry(reader, to_server, names, _FROM_CLIENT, "sent")),
            asyncio.create_task(self._carry(to_server_reader, writer, names, _FROM_SERVER, "received")),
        )
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        writer.close()
        to_server.close()

    async def _carry(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        names: list[str],
        verbs: tuple[bytes, ...],
        way: str,
    ) -> None:
        rest, skip = b"", 0
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
            if way == "sent":
                self.writes[names[0]] += 1
            rest, skip = self._count(rest + data, skip, names, verbs, way)

    def _count(self, data: bytes, skip: int, names: list[str], verbs: tuple[bytes, ...], way: str) -> tuple[bytes, int]:
        """Count the whole messages in `data`; returns what is left, and how many bytes of a payload are still to come."""
        at = 0
        while True:
            if skip:
                step = min(skip, len(data) - at)
                at, skip = at + step, skip - step
                if skip:
                    return b"", skip
            end = data.find(b"\r\n", at)
            if end < 0:
                return data[at:], 0
            words = data[at:end].split()
            at = end + 2
            if not words:
                continue
            if words[0] in verbs:
                self.messages[names[0], way] += 1
                skip = int(words[-1]) + 2
            elif words[0] == b"CONNECT":
                found = _NAME.search(data, 0, end)
                names[0] = found[1].decode() if found else ""


@asynccontextmanager
async def counting(url: str) -> AsyncIterator[tuple[WireCounter, str]]:
    """A counter, and the URL by which the server behind it is reached."""
    parts, counter = urlsplit(url), WireCounter()
    assert parts.hostname is not None
    assert parts.port is not None

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await counter.forward(reader, writer, parts.hostname or "", parts.port or 0)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    user = f"{parts.username}:{parts.password}@" if parts.username else ""
    try:
        yield counter, f"nats://{user}127.0.0.1:{port}"
    finally:
        server.close()
