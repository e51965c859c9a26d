"""Connections of the HTTP server: bytes on a socket as clients and proxies really send them, and clients that do not go on."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from omnibus.frontdoor.http_connection import Limits
from omnibus.frontdoor.server import HttpServer, raise_open_files

pytestmark = pytest.mark.integration

QUICK = Limits(header_timeout=0.5, body_timeout=0.5, unread_timeout=1.0)
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
WEBSOCKET = b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
END_OF_STREAM = b"data: [DONE]\n\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what was asked; `/stream` in pieces of unknown length, `/large` with more than a socket holds."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    length: list[tuple[bytes, bytes]] = []
    pieces = [json.dumps([scope["method"], scope["path"], body.decode()]).encode()]
    if scope["path"] == "/stream":
        pieces = [b"data: one\n\n", b"data: two\n\n", END_OF_STREAM]
    elif scope["path"] == "/large":
        pieces = [b"x" * (64 << 20)]
    else:
        length = [(b"content-length", str(len(pieces[0])).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    for index, piece in enumerate(pieces):
        await send({"type": "http.response.body", "body": piece, "more_body": index < len(pieces) - 1})


@asynccontextmanager
async def serving(limits: Limits = QUICK) -> AsyncIterator[int]:
    async with HttpServer(echo, port=0, grace=1.0, limits=limits) as server:
        yield server.port


class Client:
    """A socket, and the answers that come on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer; its body by its length, by its chunks, or to the end of the connection."""
        async with asyncio.timeout(20):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
            if "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            elif "transfer-encoding" in headers:
                body = await self.reader.readuntil(b"0\r\n\r\n")
            else:
                body = await self.reader.read()
        return int(lines[0].split()[1]), headers, body

    async def is_closed(self) -> bool:
        """Whether the server ends the connection without another byte."""
        try:
            async with asyncio.timeout(20):
                return await self.reader.read(1) == b""
        except ConnectionError:
            return True


@asynccontextmanager
async def client(port: int, *sent: bytes) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
    try:
        for piece in sent:
            writer.write(piece)
            await writer.drain()
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


def post(body: bytes, extra: bytes = b"", *, version: bytes = b"1.1", path: bytes = b"/here") -> bytes:
    head = b"POST " + path + b" HTTP/" + version + b"\r\nHost: x\r\n" + extra
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(body: bytes, extra: bytes = b"") -> bytes:
    head = b"POST /here HTTP/1.1\r\nHost: x\r\n" + extra + b"Transfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET, H2C.replace(b"h2c", b"TLS/1.2, h2c")])
@pytest.mark.parametrize("request_of", [post, chunked])
@pytest.mark.parametrize("cut", [0, 30, -3])
async def test_a_body_arrives_when_the_request_offers_another_protocol(request_of: Any, offer: bytes, cut: int) -> None:
    sent = request_of(b"the body", offer)
    async with serving() as port, client(port, sent[:cut], sent[cut:]) as one:
        status, _, body = await one.answer()
        assert (status, json.loads(body)) == (200, ["POST", "/here", "the body"])
        one.writer.write(post(b"another") + post(b"and another", offer))
        assert [json.loads((await one.answer())[2])[2] for _ in range(2)] == ["another", "and another"]


async def test_a_tunnel_is_refused() -> None:
    async with serving() as port, client(port, b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n") as one:
        status, headers, body = await one.answer()
        assert (status, headers["connection"], json.loads(body)["error"]["code"]) == (400, "close", "invalid_request")
        assert await one.is_closed()


async def test_what_is_no_http_is_refused_with_a_typed_error() -> None:
    async with serving() as port, client(port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n" * 4) as one:
        status, _, body = await one.answer()
        assert (status, json.loads(body)["error"]["type"]) == (400, "invalid_request_error")


async def test_a_stream_has_no_chunks_and_ends_with_the_connection_when_the_client_speaks_http_1_0() -> None:
    async with serving() as port, client(port, b"GET /stream HTTP/1.0\r\n\r\n") as one:
        status, headers, body = await one.answer()
    assert (status, body) == (200, b"data: one\n\ndata: two\n\n" + END_OF_STREAM)
    assert "transfer-encoding" not in headers


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_an_answer_of_known_length_has_it_whatever_the_version(version: bytes) -> None:
    async with serving() as port, client(port, post(b"hi", version=version)) as one:
        assert json.loads((await one.answer())[2]) == ["POST", "/here", "hi"]


async def test_a_stream_comes_in_chunks_when_the_client_speaks_http_1_1() -> None:
    async with serving() as port, client(port, b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n") as one:
        _, headers, body = await one.answer()
        assert headers["transfer-encoding"] == "chunked"
        assert END_OF_STREAM in body


@pytest.mark.parametrize(
    "half",
    [
        b"G",
        b"POST /here HTTP/1.1\r\nHost: x\r\nContent-",
        b"\r\n",
        post(b"hi", b"Connection: keep-alive\r\n")[:-1],
        b"POST /here HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc",
    ],
)
async def test_a_request_that_stays_half_sent_ends_with_408(half: bytes) -> None:
    async with serving() as port, client(port, half) as one:
        status, headers, body = await one.answer()
        assert (status, headers["connection"], json.loads(body)["error"]["code"]) == (408, "close", "request_timeout")
        assert await one.is_closed()


async def test_a_second_request_that_stays_half_sent_ends_when_the_first_was_answered() -> None:
    async with serving() as port, client(port, post(b"whole") + b"GET /next HT") as one:
        assert (await one.answer())[0] == 200
        assert (await one.answer())[0] == 408


async def test_a_body_that_trickles_ends_and_one_that_makes_progress_does_not() -> None:
    async with serving() as port:
        for size, status in ((1, 408), (1024, 200)):
            async with client(port, post(b"x" * size * 20)[: -20 * size]) as one:
                feeding = asyncio.create_task(_feed(one, [b"x" * size] * 20))
                assert (await one.answer())[0] == status
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)


async def _feed(one: Client, pieces: list[bytes]) -> None:
    for piece in pieces:
        one.writer.write(piece)
        await asyncio.sleep(0.15)  # the pace of the client is what is tested


@pytest.mark.parametrize("before", [b"", post(b"one")])
async def test_an_idle_connection_is_closed_after_its_time(before: bytes) -> None:
    async with serving(Limits(keep_alive=1)) as port, client(port, before) as one:
        if before:
            assert (await one.answer())[0] == 200
        assert await one.is_closed()


async def test_a_client_that_reads_nothing_of_its_answer_is_dropped() -> None:
    async with serving() as port, client(port) as one:
        one.writer.transport.pause_reading()  # type: ignore[attr-defined]
        one.writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        closed = asyncio.Event()
        asyncio.get_running_loop().call_later(4.0, closed.set)  # the timeout, and the second between two checks
        await closed.wait()
        one.writer.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await one.reader.readexactly(64 << 20)


async def test_one_connection_too_many_is_a_503_and_a_closed_one_makes_room() -> None:
    async with serving(Limits(max_connections=2)) as port, client(port, post(b"one")) as first:
        assert (await first.answer())[0] == 200
        async with client(port), client(port) as third:
            status, headers, body = await third.answer()
            assert (status, headers["retry-after"]) == (503, "1")
            assert json.loads(body)["error"]["code"] == "too_many_connections"
        first.writer.write(post(b"still here"))
        assert (await first.answer())[0] == 200


async def test_the_limit_of_open_files_is_raised_when_the_hard_one_is_higher() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(200, hard), hard))
    try:
        assert raise_open_files() == (hard if hard != resource.RLIM_INFINITY else raise_open_files())
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
