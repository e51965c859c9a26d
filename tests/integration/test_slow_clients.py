"""Clients that do not read their stream: nobody beside them is slower, memory stays bounded, and their request ends."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from omnibus.broker.connection import Connection
from omnibus.client.channel import _MOST_BYTES
from omnibus.frontdoor.http_connection import Limits
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.requests.state import RequestState
from omnibus.workers.engines.sim import expected_text
from tests.support.front import Front, front
from tests.support.sse import Stream, streamed
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration

BESIDE = 63
WORD, WORDS = "w" * 1000, 14_000
"""A text larger than what a socket and a mailbox hold together."""
PROMPT = " ".join(f"w{number:03}" for number in range(60))


def writer(pipeline: str) -> PipelineSpec:
    return PipelineSpec(
        name=pipeline, deadline=120.0,
        stages=(
            StageSpec(
                stage_id=0, name="writer", engine="sim", slots=BESIDE + 1, final_output=True, final_output_type="text",
                engine_args={"outputs": {"text": "text"}, "token_rate": 30.0},
            ),
        ),
    )  # fmt: skip


class Idler:
    """A client that asks for a long text, and reads nothing before it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read(self) -> str:
        """The text, to the end of the stream."""
        self.writer.transport.resume_reading()  # type: ignore[attr-defined]
        lines = (await self.reader.readuntil(b"data: [DONE]")).decode().splitlines()
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


@asynccontextmanager
async def idler(made: Front, rate: float = 5_000.0) -> AsyncIterator[Idler]:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", made.server.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 28)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    params = {"writer": {"tokens": WORDS, "token_rate": rate}}
    ask = {"model": made.spec.name, "prompt": WORD, "stream": True, "sampling_params": params}
    body = json.dumps(ask).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    writer.write(f"{head}\r\n".encode() + body)
    try:
        yield Idler(reader, writer)
    finally:
        writer.transport.abort()


async def test_a_client_that_never_reads_slows_none_of_those_beside_it(connection: Connection, pipeline: str) -> None:
    async with front(connection, writer(pipeline)) as made, idler(made) as slow:
        channel = await made.producer.channel(pipeline)
        (box,) = (await eventually(lambda: list(channel._mailboxes.values()), what="a follower"))[0]
        await eventually(lambda: box._messages[-1:] == [None], 40.0, what="a full mailbox")
        assert box._bytes <= _MOST_BYTES
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=made.server.url, timeout=30.0, limits=limits) as http:
            streams = await asyncio.gather(*(_whole(http, pipeline) for _ in range(BESIDE)))
        assert {stream.text for stream in streams} == {PROMPT}
        assert {stream.done for stream in streams} == {True}
        assert max(stream.longest_pause() for stream in streams) < 5.0, "a word is made every 33 ms"
        assert box._bytes <= _MOST_BYTES
        assert await slow.read() == expected_text(WORD, WORDS)


async def test_the_request_of_a_client_that_reads_nothing_for_too_long_is_cancelled(
    connection: Connection, pipeline: str
) -> None:
    async with (
        front(connection, writer(pipeline), limits=Limits(unread_timeout=1.0)) as made,
        idler(made, 1_000.0) as slow,
    ):
        channel = await made.producer.channel(pipeline)
        rid = (await eventually(lambda: list(channel._mailboxes), what="a follower"))[0]
        result = await made.producer.wait(pipeline, rid)
        assert result.state is RequestState.CANCELLED
        assert result.failure is not None
        assert result.failure.code == "cancelled"
        await eventually(lambda: not channel._mailboxes, what="nothing follows it")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await slow.read()


async def _whole(http: httpx.AsyncClient, pipeline: str) -> Stream:
    async with streamed(http, pipeline, PROMPT) as stream:
        await stream.read()
    return stream
