"""A socket that was closed before the client of NATS has noticed."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from omnibus.broker.connection import connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.errors import BrokerUnavailable

pytestmark = pytest.mark.integration


def test_publish_fails_as_in_an_outage_when_uvloop_has_closed_the_socket(nats_server: EmbeddedServer) -> None:
    """As it has when the server was killed: for a moment the client takes itself for connected, and its writer is dead."""

    async def publish_into_a_closed_socket() -> None:
        async with connect(nats_server.url, name="test", role="test") as connection:
            client = connection.client
            client._flusher_task.cancel()
            await asyncio.sleep(0)  # in which it ends
            client._transport._io_writer.transport.close()
            with pytest.raises(BrokerUnavailable, match="the connection to NATS broke"):
                await connection.publish("nowhere", b"x")
            assert await connection.api("INFO"), "it has reconnected"

    uvloop.run(publish_into_a_closed_socket())


async def test_client_tries_no_more_when_it_missed_the_first_cancellation(nats_server: EmbeddedServer) -> None:
    """Its `asyncio.wait_for` may swallow one, before Python 3.12; then it would try for ever, and keep the loop from its end."""
    heard: list[int] = []

    async def try_on() -> None:
        while len(heard) < 2:
            try:
                await asyncio.sleep(60.0)
            except asyncio.CancelledError:
                heard.append(1)

    async with connect(nats_server.url, name="test", role="test") as connection:
        trying = asyncio.create_task(try_on(), name="trying")
        connection.client._reconnection_task = trying
        await asyncio.sleep(0)  # in which it begins
    assert trying.done()


def test_connection_ends_when_uvloop_has_closed_the_socket(nats_server: EmbeddedServer) -> None:
    async def leave() -> None:
        async with connect(nats_server.url, name="test", role="test") as connection:
            client = connection.client
            client._flusher_task.cancel()
            await asyncio.sleep(0)  # in which it ends
            client._pending.append(b"PING\r\n")
            client._pending_data_size += 6
            client._transport._io_writer.transport.close()

    uvloop.run(leave())
