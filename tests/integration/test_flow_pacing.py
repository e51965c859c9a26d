"""Back-pressure in flows on a real broker: how far a writer may be ahead of those that read."""

from __future__ import annotations

import asyncio

import pytest

from omnibus.broker.connection import Connection
from omnibus.flows import pacing, reader
from omnibus.flows import writer as writer_module
from omnibus.flows.reader import FlowReader
from omnibus.flows.writer import FlowWriter
from omnibus.wire.chunk import size_of
from omnibus.wire.payload import ObjectKey, Payload, Payloads
from omnibus.workers.engines.protocol import Outputs, SegmentEnd, TextDelta
from omnibus.workers.flow_output import FlowOutput
from tests.support.flows import END, chunk, flow_of, lay_out_flows, read_all, reading, texts, writer_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
SAID = TextDelta(text="said")


@pytest.fixture(autouse=True)
async def laid_out(connection: Connection, pipeline: str) -> None:
    await lay_out_flows(connection, pipeline)


async def _written_ahead(writer: FlowWriter, reader: FlowReader, count: int) -> asyncio.Task[None]:
    """A task that writes a flow of 128 KiB a chunk, and that the reader of the first one holds up."""
    elsewhere = Payload(media_type="x", nbytes=1 << 17, locations=(ObjectKey("k"),))

    async def write() -> None:
        for _ in range(count - 1):
            await writer.put({"audio": elsewhere})
        await writer.end(END)

    await writer.put({"audio": elsewhere})
    assert len((await reader.read()).chunks) == 1
    writing = asyncio.create_task(write())
    await eventually(lambda: writer.is_waiting, 10)
    return writing


async def test_writer_waits_for_the_slowest_reader_that_has_begun(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "REPORT_EVERY", 1 << 18)
    monkeypatch.setattr(pacing, "WINDOW", 1 << 20)
    name, count = flow_of(pipeline), 40  # 5 MiB, referred to
    async with writer_of(connection, name, readers=(1, 2)) as writer, reading(connection, name, 1) as slow:
        writing = await _written_ahead(writer, slow, count)
        assert writer._offset <= 3 << 20, "it is held up about a window ahead"
        total, part = 1, await slow.read()
        while part.end is None:
            total, part = total + len(part.chunks), await slow.read()
        await writing
        assert total + len(part.chunks) == count


async def test_writer_is_not_held_up_when_nobody_has_begun_to_read(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "WINDOW", 1 << 10)
    name = flow_of(pipeline)
    async with writer_of(connection, name, readers=(1,)) as writer:
        for _ in range(100):
            await writer.put(chunk("x" * 100))
        await asyncio.wait_for(writer.end(END), 30)
    assert len(await read_all(connection, name)) == 100


@pytest.mark.parametrize("other", [(), (2,)])
async def test_writer_goes_on_when_nobody_reads_any_more(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch, other: tuple[int, ...]
) -> None:
    """Its slot may be what the next reader waits for; another stage that never began changes nothing."""
    monkeypatch.setattr(pacing, "WINDOW", 1 << 20)
    monkeypatch.setattr(pacing, "LOOK_EVERY", 0.1)
    name, count = flow_of(pipeline), 40
    async with writer_of(connection, name, readers=(1, *other), lease=0.5) as writer:
        async with reading(connection, name, 1, lease=0.5) as stopped:
            writing = await _written_ahead(writer, stopped, count)
        await asyncio.wait_for(writing, 30)
    async with reading(connection, name) as later:
        assert len((await later.read()).chunks) == count


async def test_writer_waits_for_a_reader_that_is_busy_for_long(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "WINDOW", 1 << 20)
    monkeypatch.setattr(pacing, "LOOK_EVERY", 0.1)
    name, reports = flow_of(pipeline), list[float]()
    loop = asyncio.get_running_loop()
    subscription = await connection.subscribe(name.position(1), lambda _: reports.append(loop.time()))
    async with (
        writer_of(connection, name, readers=(1,), lease=3.0) as writer,
        reading(connection, name, 1, lease=1.0) as busy,
    ):
        writing = await _written_ahead(writer, busy, 40)
        written = writer._offset
        await eventually(lambda: reports[-1] - reports[0] > 4.0, 30, what="more than a lease")
        assert writer.is_waiting
        assert writer._offset == written
        writing.cancel()
    await subscription.unsubscribe()


async def test_lost_report_is_repeated_while_a_reader_waits(connection: Connection, pipeline: str) -> None:
    name = flow_of(pipeline)
    async with writer_of(connection, name, readers=(1,)) as writer, reading(connection, name, 1, lease=0.3) as other:
        await writer.put(chunk("12345"))
        await other.read()
        waiting = asyncio.create_task(other.read())
        try:
            await eventually(lambda: _position(connection, writer, size_of(chunk("12345"))), 10)
        finally:
            waiting.cancel()


async def test_report_of_a_reader_that_has_left_is_removed_with_its_flow(connection: Connection, pipeline: str) -> None:
    """A purge overtakes what is published just before it and not acknowledged yet."""
    left = set[str]()
    for number in range(50):
        name = flow_of(pipeline, f"r{number}")
        async with writer_of(connection, name) as writer, reading(connection, name, 1) as other:
            await writer.put(chunk("first"))
            await other.read()
            other._reconnected()  # one more report, at the last moment
        await connection.find(f"STREAM.PURGE.{name.stream}", {"filter": f"{name.subject}.>"})
        await asyncio.sleep(0.01)
        left |= set(await connection.stored_subjects(name.stream, f"{name.subject}.>"))
    assert not left


async def _position(connection: Connection, writer: object, wanted: int) -> bool:
    return await writer._pacing._position(1) == (wanted, True)  # type: ignore[attr-defined]


async def test_chunks_of_one_window_leave_together_and_the_end_at_once(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "WINDOW", 60.0)
    name = flow_of(pipeline)
    async with writer_of(connection, name) as writer:
        await writer.put(chunk("first"))
        await eventually(lambda: writer.has_begun, 10)  # it leaves at once
        for number in range(20):
            await writer.put(chunk(str(number)))
            await asyncio.sleep(0)
        await asyncio.wait_for(writer.end(END), 30)
    assert await read_all(connection, name) == ["first", *map(str, range(20))]
    info = await connection.api(f"STREAM.INFO.{name.stream}")
    assert info["state"]["messages"] == 2


async def test_short_window_ends_the_wait_of_what_was_put_before(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "WINDOW", 60.0)
    name = flow_of(pipeline)
    async with writer_of(connection, name) as writer, reading(connection, name) as reader:
        await writer.put(chunk("first"))
        assert texts((await asyncio.wait_for(reader.read(), 30)).chunks) == ["first"]
        await writer.put(chunk("waits"))
        await asyncio.sleep(0.1)
        await writer.put(chunk("opens"), is_short=True)
        assert texts((await asyncio.wait_for(reader.read(), 30)).chunks) == ["waits", "opens"]
        await writer.put(chunk("waits again"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(), 0.3)


async def test_short_windows_bound_the_messages_of_many_answers(connection: Connection, pipeline: str) -> None:
    name, now = flow_of(pipeline), asyncio.get_running_loop().time
    async with writer_of(connection, name) as writer:
        began = now()
        for number in range(100):
            await writer.put(chunk(str(number)), is_short=True)
            await asyncio.sleep(0.001)
        await writer.end(END)
        took = now() - began
    assert await read_all(connection, name) == list(map(str, range(100)))
    info = await connection.api(f"STREAM.INFO.{name.stream}")
    assert info["state"]["messages"] <= 3 + took / writer_module.SHORT_WINDOW


@pytest.mark.parametrize(("size", "count"), [(1 << 20, 5), (128 * 1024, 6)])
async def test_full_messages_wait_for_no_window(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch, size: int, count: int
) -> None:
    monkeypatch.setattr(writer_module, "WINDOW", 60.0)
    elsewhere = Payload(media_type="x", nbytes=size, locations=(ObjectKey("k"),))
    name, found = flow_of(pipeline), 0
    async with writer_of(connection, name) as writer, reading(connection, name) as reader:
        for _ in range(count):
            await writer.put({"audio": elsewhere})
            await asyncio.sleep(0.05)
        async with asyncio.timeout(30):
            while found < count - 1:  # the last one may wait for one more
                found += len((await reader.read()).chunks)


async def test_a_flow_that_is_held_begins_when_its_time_is_over(connection: Connection, pipeline: str) -> None:
    now = asyncio.get_running_loop().time
    async with writer_of(connection, flow_of(pipeline)) as writer:
        began = now()
        writer.hold(0.5)
        await writer.put(chunk("first"))
        await eventually(lambda: writer.has_begun, 10)
        assert now() - began >= 0.5


async def test_a_flow_that_is_held_begins_with_its_second_chunk(connection: Connection, pipeline: str) -> None:
    name = flow_of(pipeline)
    async with writer_of(connection, name) as writer, reading(connection, name) as reader:
        writer.hold(60.0)
        await writer.put(chunk("first"))
        await asyncio.sleep(0.1)
        assert not writer.has_begun
        await writer.put(chunk("second"))
        assert len((await asyncio.wait_for(reader.read(), 30)).chunks) == 2
        await writer.put(chunk("third"))
        assert len((await asyncio.wait_for(reader.read(), 30)).chunks) == 1


@pytest.mark.parametrize("size", [5, writer_module.MOST_PENDING + 1])
async def test_the_end_of_a_flow_that_is_held_and_what_is_too_large_to_wait_leave_at_once(
    connection: Connection, pipeline: str, size: int
) -> None:
    name = flow_of(pipeline)
    elsewhere = Payload(media_type="x", nbytes=size, locations=(ObjectKey("k"),))
    async with writer_of(connection, name) as writer:
        writer.hold(60.0)
        await asyncio.wait_for(writer.put({"audio": elsewhere}), 30)
        if size > writer_module.MOST_PENDING:
            await eventually(lambda: writer.has_begun, 10)
        await asyncio.wait_for(writer.end(END), 30)
    async with reading(connection, name) as reader:
        assert len((await reader.read()).chunks) == 1


@pytest.mark.parametrize(
    "ends", [(TextDelta(text="opens", is_opening=True),), (SegmentEnd(),), (TextDelta(text="", is_opening=True), SAID)]
)
async def test_what_begins_or_ends_an_answer_waits_for_a_short_window_alone(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch, ends: tuple[TextDelta | SegmentEnd, ...]
) -> None:
    monkeypatch.setattr(writer_module, "WINDOW", 60.0)
    name = flow_of(pipeline)

    async def pack(outputs: Outputs) -> Payloads:
        return chunk(outputs["text"])

    async def unpack(_: Payloads) -> Outputs:
        raise AssertionError("there is no earlier attempt")

    output = FlowOutput(writer_of(connection, name), {"text": "text"}, pack, unpack, is_needed=True)
    async with output, reading(connection, name) as reader:
        await output.add(SAID)
        assert texts((await asyncio.wait_for(reader.read(), 30)).chunks) == ["said"]
        await output.add(SAID)
        for item in ends:
            await output.add(item)
        assert len((await asyncio.wait_for(reader.read(), 30)).chunks) == 2
        await output.add(SAID)  # what follows the end of an answer begins one
        if isinstance(ends[0], SegmentEnd):
            assert len((await asyncio.wait_for(reader.read(), 30)).chunks) == 1
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(), 0.3)
