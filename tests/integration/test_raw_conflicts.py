"""Raw requests whose id another request has: their producer is told, on the token that it gave itself."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from omnibus.broker.connection import Connection, ReceivedMessage
from omnibus.ledger.records import Ledger
from omnibus.wire import codec, out, subjects
from tests.support.flow import line, serving
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


async def listen(connection: Connection, pipeline: str, token: str) -> asyncio.Queue[out.Out]:
    received: asyncio.Queue[out.Out] = asyncio.Queue()

    async def on_message(message: ReceivedMessage) -> None:
        received.put_nowait(codec.decode(message.data, out.Out))

    await connection.subscribe(subjects.out_all(pipeline, token), on_message)
    return received


async def ask(connection: Connection, pipeline: str, token: str, rid: str, **request: Any) -> None:
    body = json.dumps(request).encode()
    await connection.js_publish(subjects.request(pipeline, rid), body, headers={"Omni-Reply": token})


async def last(received: asyncio.Queue[out.Out]) -> out.EndNotice | out.Refused:
    async with asyncio.timeout(20):
        while True:
            message = await received.get()
            if isinstance(message, out.EndNotice | out.Refused):
                return message


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "two words"},
        {"prompt": "one", "tenant": "another"},
        {"prompt": "one", "modalities": ["text"], "sampling_params": {"s1": {"tokens": 3}}},
        {"prompt": ""},
    ],
)
@pytest.mark.parametrize("is_open", [True, False])
async def test_producer_is_told_of_the_conflict_when_another_request_has_its_id(
    connection: Connection, pipeline: str, other: dict[str, Any], is_open: bool
) -> None:
    """Also when the first is still open, and when the second could not be served anyway; the first is not touched."""
    spec = line(pipeline)
    async with serving(connection, spec, replicas=0 if is_open else 1) as producer:
        first = await listen(connection, pipeline, "first")
        second = await listen(connection, pipeline, "second")
        await ask(connection, pipeline, "first", "taken", prompt="one")
        if is_open:
            ledger = Ledger(connection, pipeline)
            await eventually(lambda: ledger.read("taken"), what="the first is admitted")
        else:
            assert isinstance(await last(first), out.EndNotice)
        await ask(connection, pipeline, "second", "taken", **other)
        refused = await last(second)
        assert isinstance(refused, out.Refused)
        assert (refused.rid, refused.failure.code, refused.failure.http_status) == ("taken", "request_conflict", 409)
        result = await producer.result(pipeline, "taken")
        assert result.state == ("open" if is_open else "done")


async def test_producer_hears_of_the_same_end_when_it_asks_the_same_again(
    connection: Connection, pipeline: str
) -> None:
    async with serving(connection, line(pipeline)):
        first, second = await listen(connection, pipeline, "first"), await listen(connection, pipeline, "second")
        await ask(connection, pipeline, "first", "same", prompt="one")
        end = await last(first)
        assert isinstance(end, out.EndNotice)
        assert end.outputs
        await ask(connection, pipeline, "first", "same", prompt="one")
        await ask(connection, pipeline, "first", "next", prompt="two")
        assert await last(first) == end
        assert (await last(first)).rid == "next", "the end comes once each time that it is asked for"
        await ask(connection, pipeline, "second", "same", prompt="one")
        assert await last(second) == end, "with all outputs of what is done"
