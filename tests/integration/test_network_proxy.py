"""The tests' own network: what is cut, delayed and swallowed on it is, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from tests.support.proxy import HOST, Proxy
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


class Echo:
    """A server that sends back what it receives."""

    def __init__(self) -> None:
        self.url = ""
        self.open = 0
        """Connections that have not ended."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        self.open -= 1
        writer.close()


@asynccontextmanager
async def behind_proxy() -> AsyncIterator[tuple[Echo, Proxy]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, HOST, 0)
    echo.url = f"tcp://{HOST}:{server.sockets[0].getsockname()[1]}"
    async with Proxy(echo.url) as proxy:
        yield echo, proxy
    await eventually(lambda: echo.open == 0)
    server.close()


@asynccontextmanager
async def dial(proxy: Proxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def told(reader: asyncio.StreamReader, size: int, timeout: float = 5.0) -> bytes:
    async with asyncio.timeout(timeout):
        return await reader.readexactly(size)


async def test_everything_passes_in_order_when_the_network_is_whole() -> None:
    sent = bytes(range(256)) * 4096
    async with behind_proxy() as (_, proxy), dial(proxy) as (reader, writer):
        writer.write(sent)
        assert await told(reader, len(sent)) == sent


async def test_server_sees_the_end_when_its_client_leaves() -> None:
    async with behind_proxy() as (echo, proxy):
        async with dial(proxy):
            await eventually(lambda: echo.open == 1)
        await eventually(lambda: echo.open == 0)


async def test_connections_are_reset_and_refused_when_cut_until_healed() -> None:
    async with behind_proxy() as (echo, proxy):
        async with dial(proxy) as (reader, _):
            await eventually(lambda: echo.open == 1)
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                await told(reader, 1)
            await eventually(lambda: echo.open == 0)
        async with dial(proxy) as (reader, _):
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await told(reader, 1)
        proxy.heal()
        async with dial(proxy) as (reader, writer):
            writer.write(b"again")
            assert await told(reader, 5) == b"again"


async def test_what_was_sent_into_a_black_hole_arrives_when_it_heals() -> None:
    async with behind_proxy() as (_, proxy), dial(proxy) as (reader, writer):
        proxy.black_hole()
        writer.write(b"late")
        with pytest.raises(TimeoutError):
            await told(reader, 1, timeout=0.2)
        proxy.heal()
        assert await told(reader, 4) == b"late"


async def test_end_of_a_client_is_not_seen_through_a_black_hole() -> None:
    async with behind_proxy() as (echo, proxy):
        async with dial(proxy):
            await eventually(lambda: echo.open == 1)
            proxy.black_hole()
        with pytest.raises(AssertionError):
            await eventually(lambda: echo.open == 0, 0.2)
        proxy.heal()
        await eventually(lambda: echo.open == 0)


async def test_everything_arrives_later_when_the_network_is_slow() -> None:
    async with behind_proxy() as (_, proxy), dial(proxy) as (reader, writer):
        proxy.delay(0.1)
        started = time.monotonic()
        writer.write(b"slow")
        assert await told(reader, 4) == b"slow"
        assert time.monotonic() - started >= 0.2, "both ways"


async def test_client_of_the_broker_comes_back_when_its_connection_was_dropped(
    nats_server: EmbeddedServer, connection: Connection, pipeline: str
) -> None:
    async with Proxy(nats_server.url) as proxy, connect(proxy.url, name="behind", role="test") as behind:
        proxy.drop()
        await eventually(lambda: behind.generation == 1)
        heard = asyncio.Event()

        async def on_message(_message: object) -> None:
            heard.set()

        await connection.subscribe(f"{pipeline}.hello", on_message)
        await behind.publish(f"{pipeline}.hello")
        async with asyncio.timeout(5):
            await heard.wait()


async def test_url_keeps_user_and_password(nats_server: EmbeddedServer) -> None:
    async with (
        Proxy(nats_server.system_url) as proxy,
        connect(proxy.url, name="observer", role="disconnects") as observer,
    ):
        assert observer.connected
