"""The load of `omnibus bench`: its connections, what it reads of a stream, and the figures that it makes of it."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress

import pytest

from omnibus.cli.chat_load import ChatReader, LoadFigures, run_load, spread

pytestmark = pytest.mark.unit


def event(**delta: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


def test_first_token_and_first_sound_are_those_with_something_in_them() -> None:
    reader = ChatReader()
    reader.feed(event(role="assistant", content=""))
    assert (reader.first_token, reader.first_audio) == (None, None)
    reader.feed(event(content="a"))
    token = reader.first_token
    assert token is not None
    reader.feed(event(content="b") + event(audio={"id": "x", "data": ""}))
    assert (reader.first_token, reader.first_audio) == (token, None)
    reader.feed(event(audio={"data": "AAAA"}))
    assert reader.first_audio is not None
    assert reader.first_audio >= token


def test_events_are_read_when_their_bytes_come_in_pieces() -> None:
    reader, whole = (
        ChatReader(),
        event(content="a") + b'data: {"choices":[],"usage":{"completion_tokens":7}}\n\ndata: [DONE]\n\n',
    )
    for index in range(len(whole)):
        reader.feed(whole[index : index + 1])
    assert (reader.tokens, reader.is_whole, reader.error) == (7, True, None)
    assert reader.first_token is not None


def test_error_in_a_stream_is_its_failure() -> None:
    reader = ChatReader()
    reader.feed(b'data: {"error":{"message":"no room","code":"overloaded"}}\n\n')
    assert (reader.error, reader.is_whole) == ("no room", False)


def test_spread_has_the_usual_quantiles_and_none_of_nothing() -> None:
    assert spread([]) is None
    assert spread([0.5]) == {"p50": 0.5, "p90": 0.5, "p99": 0.5, "max": 0.5}
    assert spread([float(one) for one in range(101)]) == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}


WHOLE = event(content="a") + b"data: [DONE]\n\n"


class Server:
    """Answers every request on a connection alike; counts connections, and those open at a time."""

    def __init__(self, status: str, body: bytes, *, keeps: bool) -> None:
        how = "keep-alive" if keeps else "close"
        head = f"HTTP/1.1 {status}\r\nConnection: {how}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._answer, self._keeps = head.encode() + body, keeps
        self.opened = self.open = self.most = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened, self.open = self.opened + 1, self.open + 1
        self.most = max(self.most, self.open)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                (length,) = re.findall(rb"Content-Length: (\d+)", head)
                await reader.readexactly(int(length))
                writer.write(self._answer)
                if not self._keeps:
                    break
        writer.close()
        self.open -= 1

    async def load(self, count: int, width: int) -> LoadFigures:
        async with await asyncio.start_server(self, "127.0.0.1") as server:
            port = server.sockets[0].getsockname()[1]
            return await run_load(
                f"http://127.0.0.1:{port}", b"{}", count=count, width=width, timeout=5.0, headers={}
            )  # fmt: skip


async def test_connection_is_kept_while_the_server_keeps_it() -> None:
    server = Server("200 OK", WHOLE, keeps=True)
    found = await server.load(20, 2)
    assert (len(found.latencies), found.failed, server.opened) == (20, 0, 2)


async def test_next_request_has_a_new_connection_when_the_server_closes_the_old_one() -> None:
    server = Server("200 OK", WHOLE, keeps=False)
    found = await server.load(20, 2)
    assert (len(found.latencies), dict(found.failures), server.opened) == (20, {}, 20)


@pytest.mark.parametrize("keeps", [True, False])
async def test_connections_of_failed_requests_do_not_stay_open(keeps: bool) -> None:
    server = Server("429 Too Many Requests", b"full", keeps=keeps)
    found = await server.load(30, 2)
    assert dict(found.failures) == {"429: full": 30}
    assert server.most <= 4, "a closed one is noticed a little later"
