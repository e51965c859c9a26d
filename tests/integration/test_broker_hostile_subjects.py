"""Subjects that only a client that is not ours can send: those of a server's protocol, and of nobody's alphabet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.listening import free_port
from omnibus.broker.replies import ReceivedMessage

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:parameter 'timeout' of type 'float':DeprecationWarning"),  # nats-py passes one
]
TOKENS = (b"\xff\xfe", b"a\x0b1", b"a\x0c1\x0c1", b"a\x1c\x1d1", b"\xc2\xa0")


class WebSocketServer(EmbeddedServer):
    """A server that listens for WebSockets, too."""

    ws_port = 0

    def _write_config(self) -> Path:
        path = super()._write_config()
        path.write_text(f'{path.read_text()}\nwebsocket {{ listen: "127.0.0.1:{self.ws_port}", no_tls: true }}\n')
        return path


@pytest.fixture
async def over_web_socket(tmp_path: Path) -> AsyncIterator[Connection]:
    pytest.importorskip("aiohttp", reason="nats-py speaks WebSocket through it")
    server = WebSocketServer(tmp_path, port=free_port())
    server.ws_port = free_port()
    async with server:
        url = server.url.replace("nats://", "ws://").replace(f":{server.port}", f":{server.ws_port}")
        async with connect(url, name="web-socket") as connection:
            yield connection


@pytest.mark.parametrize("token", TOKENS)
async def test_reader_confuses_nothing_when_such_a_subject_comes_over_a_web_socket(
    over_web_socket: Connection, token: bytes
) -> None:
    await test_reader_goes_on_and_confuses_nothing_when_a_subject_is_no_text_of_ours(over_web_socket, token)


async def test_messages_of_any_size_are_whole_over_a_web_socket(over_web_socket: Connection) -> None:
    received: list[ReceivedMessage] = []
    await over_web_socket.subscribe("whole", received.append)
    sizes = (0, 1, 2, 300, 70_000, 700_000)
    for size in sizes:
        await over_web_socket.publish("whole", b"x" * size, headers={"Size": str(size)})
    await over_web_socket.flush()
    assert [(len(message.data), (message.headers or {})["Size"]) for message in received] == [
        (size, str(size)) for size in sizes
    ]


@pytest.mark.parametrize("token", TOKENS)
async def test_reader_goes_on_and_confuses_nothing_when_a_subject_is_no_text_of_ours(
    connection: Connection, token: bytes
) -> None:
    received: list[ReceivedMessage] = []
    others: list[ReceivedMessage] = []
    await connection.subscribe("others.>", others.append)
    await connection.subscribe("hostile.*", received.append)
    generation = connection.generation
    connection.client._send(b"PUB hostile.%b reply.to 1\r\nx\r\n" % token)
    await connection.publish("hostile.last", b"y")
    await connection.flush()
    assert [message.data for message in received] == [b"x", b"y"]
    assert received[0].reply == "reply.to"
    assert not others
    assert connection.generation == generation, "the connection was kept"
