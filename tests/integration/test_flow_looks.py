"""How often a reader of a flow looks: once for a chunk, and as soon as it can be read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from omnibus.broker.connection import Connection
from omnibus.flows import reader
from omnibus.flows.flow_name import FlowName
from omnibus.wire.chunk import Chunks
from tests.support.flows import END, chunk, flow_of, lay_out_flows, reading, texts, writer_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
async def laid_out(connection: Connection, pipeline: str) -> None:
    await lay_out_flows(connection, pipeline)


async def test_chunks_that_come_one_by_one_cost_one_look_each(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, count, sent = flow_of(pipeline), 50, list[str]()

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(subject: str, *given: Any, **named: Any) -> Any:
            sent.append(subject)
            return real(subject, *given, **named)

        return counted

    for verb in ("request", "send", "js_publish"):  # `request_many` sends by `send`
        monkeypatch.setattr(connection, verb, counting(getattr(connection, verb)))
    async with writer_of(connection, name) as writer, reading(connection, name, 1) as other:
        for number in range(count):
            waiting = asyncio.create_task(other.read())
            await asyncio.sleep(0)  # it waits before the chunk is there
            await writer.put(chunk(str(number)))
            assert texts((await waiting).chunks) == [str(number)]
    looks = [subject for subject in sent if ".GET." in subject]
    assert len(looks) <= count * 1.4, "a bell may ring before its chunk can be read"
    assert len([subject for subject in sent if subject == name.position(1)]) == 1


async def test_reader_looks_for_nothing_more_when_a_bell_rang_for_what_it_has(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, looks, real = flow_of(pipeline), 0, reader.messages_behind

    async def counted(conn: Connection, name: FlowName, seq: int) -> tuple[int, list[Chunks]]:
        nonlocal looks
        looks += 1
        return await real(conn, name, seq)

    async with writer_of(connection, name) as writer, reading(connection, name, 1) as other:
        await writer.put(chunk("0"))
        assert texts((await other.read()).chunks) == ["0"]
        monkeypatch.setattr(reader, "messages_behind", counted)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(other.read(), reader._NEW / 2)
    assert looks <= 1


async def test_chunk_that_came_during_an_outage_is_read_soon_when_its_copy_lags(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, real, looks = flow_of(pipeline), reader.messages_behind, 0

    async def late(conn: Connection, name: FlowName, seq: int) -> tuple[int, list[Chunks]]:
        nonlocal looks
        looks += 1
        return (seq, []) if looks < 3 else await real(conn, name, seq)

    async with writer_of(connection, name) as writer, reading(connection, name, 1) as other:
        await writer.put(chunk("0"))
        assert texts((await other.read()).chunks) == ["0"]
        await writer.put(chunk("1"))
        await eventually(lambda: not writer._is_busy)
        await connection.api(f"STREAM.INFO.{name.stream}")  # behind its bell
        other._rang_behind = min(other._rang_behind, other._seq - 1)  # its bell was lost
        other._news.clear()
        monkeypatch.setattr(reader, "messages_behind", late)
        other._reconnected()
        async with asyncio.timeout(reader.LOOK_EVERY / 2):
            assert texts((await other.read()).chunks) == ["1"]


async def test_complete_flow_of_many_messages_is_read_without_a_pause_when_no_bell_rang(
    connection: Connection, pipeline: str
) -> None:
    name, count = flow_of(pipeline), 150
    async with writer_of(connection, name) as writer:
        for number in range(count):
            await writer.put(chunk(str(number)))
            await eventually(lambda: not writer._is_busy)
        await writer.end(END)
    async with reading(connection, name) as late:
        late._new_until = 0.0  # as one whose stage took long for what came first
        found = list[str]()
        async with asyncio.timeout(reader.LOOK_EVERY):
            while len(found) < count:
                found += texts((await late.read()).chunks)
    assert found == list(map(str, range(count)))


@pytest.mark.parametrize("before", [1, 3])
async def test_a_chunk_is_read_at_once_when_its_bell_came_long_before_it_can_be_read(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """Chunks from before the reader listened have rung no bell, and make up for none."""
    name, looks = flow_of(pipeline), 0
    real = reader.messages_behind

    async def late(conn: Connection, name: FlowName, seq: int) -> tuple[int, list[Chunks]]:
        """A stream whose last chunk cannot be read at the first looks."""
        nonlocal looks
        looks += 1
        behind, messages = await real(conn, name, seq)
        hidden = [one for one in messages if texts(one.chunks) == ["last"]] if looks < 3 else []
        return (known if hidden else behind), [one for one in messages if one not in hidden]

    async with writer_of(connection, name) as writer:
        for number in range(before):
            await writer.put(chunk(str(number)))
            await eventually(lambda: not writer._is_busy)
        known = writer._seq
        monkeypatch.setattr(reader, "messages_behind", late)
        async with reading(connection, name, 1) as other:
            other._new_until = 0.0  # as one that has listened for a while
            await writer.put(chunk("last"))
            await eventually(lambda: not writer._is_busy)
            found = list[str]()
            async with asyncio.timeout(reader.LOOK_EVERY / 2):
                while len(found) <= before:
                    found += texts((await other.read()).chunks)
        assert found == [*map(str, range(before)), "last"]
