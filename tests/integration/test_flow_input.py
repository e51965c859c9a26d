"""A flow on its way to the code of a stage: how often threads are crossed, and what a chunk that cannot be read leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from omnibus.broker.connection import Connection
from omnibus.errors import InvalidRequest
from omnibus.flows import writer as writer_module
from omnibus.flows.reader import FlowReader
from omnibus.payloads.store import PayloadStore
from omnibus.wire.payload import TEXT, Payload, Payloads
from omnibus.workers.engines.protocol import Flow, Outputs
from omnibus.workers.flow_input import FlowInput
from tests.support.flows import END, SOON, chunk, flow_of, lay_out_flows, writer_of

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
async def laid_out(connection: Connection, pipeline: str) -> None:
    await lay_out_flows(connection, pipeline)


@asynccontextmanager
async def flow_input(connection: Connection, pipeline: str) -> AsyncIterator[FlowInput]:
    reader = FlowReader(connection, flow_of(pipeline), deadline=connection.clock.now() + SOON)
    async with FlowInput(reader, PayloadStore(connection, pipeline)) as made:
        yield made


async def write(connection: Connection, pipeline: str, chunks: list[Payloads]) -> None:
    """A flow in one message."""
    async with writer_of(connection, flow_of(pipeline)) as writer:
        for one in chunks:
            await writer.put(one)
        await writer.end(END)


@pytest.mark.parametrize("count", [2, 60, 200])
async def test_chunks_that_are_there_cross_between_threads_together(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(writer_module, "WINDOW", 60.0)
    await write(connection, pipeline, [chunk(str(number)) for number in range(count)])
    crossed, real = 0, asyncio.run_coroutine_threadsafe

    def crossing(*given: Any) -> Any:
        nonlocal crossed
        crossed += 1
        return real(*given)

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", crossing)

    def read(flow: Flow) -> list[str]:
        return [outputs["text"] for outputs in flow]

    async with flow_input(connection, pipeline) as given:
        found = await given.run(asyncio.to_thread(read, given.flow()))
    assert found == list(map(str, range(count)))
    assert crossed <= 2 + count / 60, "one for the first chunks, one for the end"


@pytest.mark.parametrize("good", [0, 1, 3])
async def test_chunk_that_cannot_be_read_leaves_those_before_it(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch, good: int
) -> None:
    monkeypatch.setattr(writer_module, "WINDOW", 60.0)
    damaged = {"text": Payload.inline(b"\xff", TEXT)}
    await write(connection, pipeline, [*(chunk(str(number)) for number in range(good)), damaged, chunk("behind")])
    found = list[str]()

    async def read(flow: Flow) -> None:
        async for outputs in flow:
            found.append(outputs["text"])

    async with flow_input(connection, pipeline) as given:
        with pytest.raises(InvalidRequest, match="UTF-8"):
            await given.run(read(given.flow()))
    assert found == list(map(str, range(good)))


async def test_second_reader_waits_for_nothing_that_the_first_one_has_brought(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads read one flow; the second one finds nothing there, and crosses when the first one has brought three chunks."""
    crosses, may_cross, real = threading.Event(), threading.Event(), asyncio.run_coroutine_threadsafe

    def crossing(*given: Any) -> Any:
        if threading.current_thread().name == "second":
            crosses.set()
            assert may_cross.wait(SOON)
        return real(*given)

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", crossing)
    monkeypatch.setattr(writer_module, "WINDOW", 60.0)
    found = dict[str, str]()

    def take(flow: Iterator[Outputs]) -> None:
        found[threading.current_thread().name] = next(flow)["text"]

    async with flow_input(connection, pipeline) as given, writer_of(connection, flow_of(pipeline)) as writer:
        await writer.put(chunk("0"))
        flow = iter(given.flow())
        assert (await asyncio.to_thread(next, flow))["text"] == "0"
        first, second = (
            threading.Thread(target=take, args=(flow,), name=name, daemon=True) for name in ("first", "second")
        )
        second.start()
        assert await asyncio.to_thread(crosses.wait, SOON)
        for number in (1, 2, 3):
            await writer.put(chunk(str(number)), is_short=number == 3)
        first.start()
        await asyncio.to_thread(first.join, SOON)
        may_cross.set()
        await asyncio.to_thread(second.join, SOON)
        assert found == {"first": "1", "second": "2"}
        given.reads_rest = False
        await given.run(asyncio.sleep(0))
