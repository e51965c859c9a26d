"""Flows on a real broker: whole and in order, whatever dies, and never by two at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from omnibus.broker.connection import Connection, PubAck, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.errors import (
    AttemptSuperseded,
    BrokerRefused,
    DeadlineExceeded,
    FlowBroken,
    FlowTooLarge,
    Overloaded,
)
from omnibus.flows import reader, stored_flow
from omnibus.flows.reader import FlowReader
from omnibus.wire import codec, stores, subjects
from omnibus.wire.chunk import Chunks, FlowEnd
from tests.support.flows import (
    END,
    chunk,
    fence,
    flow_of,
    lay_out_flows,
    read_all,
    reading,
    texts,
    writer_of,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
async def laid_out(connection: Connection, pipeline: str) -> None:
    await lay_out_flows(connection, pipeline)


async def stored(connection: Connection, pipeline: str) -> int:
    """Messages of flows that are stored."""
    info = await connection.api(f"STREAM.INFO.{stores.chunks_stream(pipeline)}")
    return int(info["state"]["messages"])


async def test_flow_is_read_whole_and_in_order_while_it_is_written(connection: Connection, pipeline: str) -> None:
    name, words = flow_of(pipeline), [f"w{number}" for number in range(500)]
    read = asyncio.create_task(read_all(connection, name))
    async with writer_of(connection, name) as writer:
        for word in words:
            await writer.put(chunk(word))
            await asyncio.sleep(0)
        await writer.end(END)
    assert await read == words
    assert await read_all(connection, name) == words, "it is replayed from its beginning"
    assert await stored(connection, pipeline) < len(words) / 2, "what waited left joined"


async def test_end_carries_what_it_was_given_and_a_flow_may_have_no_chunk(
    connection: Connection, pipeline: str
) -> None:
    begun: list[bool] = []

    async def note() -> None:
        begun.append(True)

    name = flow_of(pipeline)
    async with writer_of(connection, name, on_begun=note) as writer:
        await writer.end(FlowEnd(finish_reason="length"))
    async with reading(connection, name) as reader:
        part = await reader.read()
    assert (part.chunks, part.end, begun) == ((), FlowEnd(finish_reason="length"), [True])


async def test_begun_is_told_after_the_first_chunk_is_stored_and_once(connection: Connection, pipeline: str) -> None:
    seen: list[int] = []

    async def note() -> None:
        seen.append(await stored(connection, pipeline))

    async with writer_of(connection, flow_of(pipeline), on_begun=note) as writer:
        for _ in range(50):
            await writer.put(chunk("x"))
            await asyncio.sleep(0.001)
        await writer.end(END)
    assert seen == [1]


async def test_later_attempt_goes_on_behind_what_is_stored_and_the_earlier_one_is_cut_off(
    connection: Connection, pipeline: str
) -> None:
    name = flow_of(pipeline)
    async with writer_of(connection, name) as first, writer_of(connection, name, fence(delivery=2)) as second:
        await first.put(chunk("a"))
        await first.put(chunk("b"))
        await eventually(lambda: stored_texts(connection, pipeline, ["a", "b"]))
        assert await second.open(keep=True) is None
        assert texts(await second.stored()) == ["a", "b"]
        await first.put(chunk("zombie"))
        with pytest.raises(AttemptSuperseded) as caught:
            await first.end(END)
        assert caught.value.is_same_task
        await second.put(chunk("c"))
        await second.end(END)
    assert await read_all(connection, name) == ["a", "b", "c"]


async def stored_texts(connection: Connection, pipeline: str, wanted: list[str]) -> bool:
    async with reading(connection, flow_of(pipeline)) as reader:
        return await stored(connection, pipeline) > 0 and texts((await reader.read()).chunks) == wanted


async def test_later_attempt_begins_again_and_a_reader_is_told(connection: Connection, pipeline: str) -> None:
    name = flow_of(pipeline)
    async with reading(connection, name) as reader:
        async with writer_of(connection, name) as first:
            await first.put(chunk("a"))
            assert texts((await reader.read()).chunks) == ["a"]
        async with writer_of(connection, name, fence(task_seq=9)) as second:
            assert await second.open(keep=False) is None
            await second.put(chunk("A"))
            await second.end(END)
        part = await reader.read()
        assert (part.restarted, part.first, texts(part.chunks)) == (True, 0, ["A"])
    assert await read_all(connection, name) == ["A"], "what is void is left out"


async def test_attempt_that_did_not_know_of_another_takes_over_with_its_first_chunk(
    connection: Connection, pipeline: str
) -> None:
    name = flow_of(pipeline)
    async with writer_of(connection, name) as first, writer_of(connection, name, fence(task_seq=2)) as copy:
        await first.put(chunk("a"))
        await eventually(lambda: stored_texts(connection, pipeline, ["a"]))
        await copy.put(chunk("A"))
        await copy.put(chunk("B"))
        await copy.end(END)
        await first.put(chunk("b"))
        await first.end(END)  # the flow is complete: nothing is missing of it
        assert first.is_complete
    assert await read_all(connection, name) == ["A", "B"]


async def test_attempt_at_another_message_is_superseded_and_knows_it(connection: Connection, pipeline: str) -> None:
    name = flow_of(pipeline)
    async with writer_of(connection, name, fence(task_seq=7)) as later:
        await later.put(chunk("a"))
        await eventually(lambda: stored_texts(connection, pipeline, ["a"]))
        async with writer_of(connection, name, fence(task_seq=3, delivery=2)) as earlier:
            with pytest.raises(AttemptSuperseded) as caught:
                await earlier.open(keep=True)
    assert not caught.value.is_same_task


async def test_complete_flow_is_left_as_it_is_by_a_later_attempt(connection: Connection, pipeline: str) -> None:
    name, begun = flow_of(pipeline), list[bool]()

    async def note() -> None:
        begun.append(True)

    async with writer_of(connection, name) as first:
        await first.put(chunk("a"))
        await first.end(END)
    async with writer_of(connection, name, fence(delivery=2), on_begun=note) as second:
        assert await second.open(keep=False) == END
        await second.put(chunk("more"))
        await second.end(FlowEnd(finish_reason="other"))
    assert await read_all(connection, name) == ["a"]
    assert begun == [True], "its reader is asked once more: the first attempt may have died before it could"


async def test_own_message_is_recognised_when_its_acknowledgement_was_lost(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, real, lost = flow_of(pipeline), connection.js_publish, list[str]()

    async def publish_again(subject: str, *given: Any, **named: Any) -> PubAck:
        await real(subject, *given, **named)
        lost.append(subject)
        return await real(subject, *given, **named)  # as after an acknowledgement that never came: it is refused

    monkeypatch.setattr(connection, "js_publish", publish_again)
    async with writer_of(connection, name) as writer:
        await writer.put(chunk("a"))
        await writer.end(END)
    assert await read_all(connection, name) == ["a"]
    assert lost


async def test_consumed_restart_makes_void_what_this_attempt_wrote(connection: Connection, pipeline: str) -> None:
    name = flow_of(pipeline)
    async with writer_of(connection, name) as writer:
        for word in ("a", "b"):
            await writer.put(chunk(word))
        await eventually(lambda: stored_texts(connection, pipeline, ["a", "b"]))
        await writer.put(chunk("c"))
        writer.restart()
        await writer.put(chunk("A"))
        await writer.end(END)
    assert await read_all(connection, name) == ["A"]


async def test_flow_goes_on_when_the_broker_is_killed(own_server: EmbeddedServer, pipeline: str) -> None:
    async with (
        connect(own_server.url, name="writer") as writing,
        connect(own_server.url, name="reader") as other,
    ):
        await lay_out_flows(writing, pipeline)
        name, words = flow_of(pipeline), [f"w{number}" for number in range(40)]
        read = asyncio.create_task(read_all(other, name))
        async with writer_of(writing, name) as writer:
            for number, word in enumerate(words):
                await writer.put(chunk(word))
                if number == len(words) // 2:
                    await own_server.kill()
                    await own_server.start()
                await asyncio.sleep(0.002)
            await writer.end(END)
        assert await asyncio.wait_for(read, 30) == words


async def test_reader_finds_chunks_when_no_bell_reaches_it(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LOOK_EVERY", 0.1)
    name = flow_of(pipeline)
    async with writer_of(connection, name) as writer, reading(connection, name) as deaf:
        await writer.put(chunk("a"))
        assert texts((await deaf.read()).chunks) == ["a"]
        await deaf._stack.aclose()
        waiting = asyncio.create_task(deaf.read())
        await writer.put(chunk("b"))
        assert texts((await asyncio.wait_for(waiting, 10)).chunks) == ["b"]


async def test_refused_append_that_rings_brings_nothing_to_a_reader(connection: Connection, pipeline: str) -> None:
    name = flow_of(pipeline)
    async with writer_of(connection, name) as writer, reading(connection, name) as listening:
        await writer.put(chunk("a"))
        await listening.read()
        waiting = asyncio.create_task(listening.read())
        forged = codec.encode(Chunks(fence=fence(), first=1, chunks=(chunk("zombie"),)))
        await connection.publish(name.subject, forged, headers={"Nats-Expected-Last-Subject-Sequence": "999"})
        await connection.flush()
        await writer.put(chunk("b"))
        assert texts((await waiting).chunks) == ["b"]


async def test_gap_is_an_error_that_names_the_stage(connection: Connection, pipeline: str) -> None:
    name = flow_of(pipeline)
    for first in (0, 2):
        await connection.js_publish(
            name.subject, codec.encode(Chunks(fence=fence(), first=first, chunks=(chunk("x"),)))
        )
    with pytest.raises(FlowBroken, match="stage 'talker' has a gap: chunks 1 to 1"):
        await read_all(connection, name)


async def test_reader_and_writer_are_told_when_the_flow_is_purged(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LOOK_EVERY", 0.1)
    name = flow_of(pipeline)
    async with writer_of(connection, name) as writer, reading(connection, name, 1) as other:
        await writer.put(chunk("a"))
        await other.read()
        waiting = asyncio.create_task(other.read())
        gone = subjects.flows_filter(pipeline, name.rid, name.nonce, name.run)
        await connection.api(f"STREAM.PURGE.{name.stream}", {"filter": gone})
        with pytest.raises(FlowBroken, match="stage 'talker' is gone"):
            await waiting
        await writer.put(chunk("b"))
        with pytest.raises(FlowBroken, match="is gone"):
            await writer.end(END)
    with pytest.raises(FlowBroken, match="is gone"):
        await read_all(connection, name)


async def test_purge_of_one_run_leaves_another_run_and_another_request_alone(
    connection: Connection, pipeline: str
) -> None:
    names = [flow_of(pipeline), flow_of(pipeline, run=2), flow_of(pipeline, "other")]
    for name in names:
        async with writer_of(connection, name) as writer:
            await writer.end(END)
    gone = subjects.flows_filter(pipeline, names[0].rid, names[0].nonce, names[0].run)
    await connection.api(f"STREAM.PURGE.{names[0].stream}", {"filter": gone})
    assert await stored(connection, pipeline) == 2


async def test_deadline_ends_the_wait_for_an_end(connection: Connection, pipeline: str) -> None:
    name = flow_of(pipeline)
    async with (
        writer_of(connection, name) as writer,
        FlowReader(connection, name, deadline=connection.clock.now() + 0.3) as impatient,
    ):
        await writer.put(chunk("a"))
        await impatient.read()
        with pytest.raises(DeadlineExceeded, match="stage 'talker' has no end"):
            await impatient.read()


async def test_flow_beyond_its_bound_is_refused_before_it_is_stored(connection: Connection, pipeline: str) -> None:
    async with writer_of(connection, flow_of(pipeline), most=1000) as writer:
        await writer.put(chunk("12345"))
        with pytest.raises(FlowTooLarge, match="stage 'talker' would have more than 1000 bytes"):
            await writer.put(chunk("678901"))


async def test_no_message_can_remove_the_flows_of_others(connection: Connection, pipeline: str) -> None:
    stream = stores.chunks_stream(pipeline)
    config = (await connection.api(f"STREAM.INFO.{stream}"))["config"]
    await connection.api(f"STREAM.UPDATE.{stream}", {**config, "allow_rollup_hdrs": True})  # as it was once
    await lay_out_flows(connection, pipeline)
    names = [flow_of(pipeline, rid) for rid in ("a", "b")]
    for name in names:
        async with writer_of(connection, name) as writer:
            await writer.put(chunk("x"))
            await writer.end(END)
    for what in ("all", "sub"):
        with pytest.raises(BrokerRefused, match="rollup"):
            await connection.js_publish(names[0].subject, b"", headers={"Nats-Rollup": what})
    assert [await read_all(connection, name) for name in names] == [["x"], ["x"]]


async def test_attempt_behind_a_restart_goes_on_behind_what_counts(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_flow, "_BATCH", 1)
    name = flow_of(pipeline)
    for number, (keep, words) in enumerate([(False, ["a", "b"]), (False, ["A"]), (True, ["B"])]):
        async with writer_of(connection, name, fence(delivery=number + 1)) as writer:
            if number:
                await writer.open(keep=keep)
            if keep:
                assert texts(await writer.stored()) == ["A"]
            for word in words:
                await writer.put(chunk(word))
                await eventually(lambda: not writer._is_busy)
    async with writer_of(connection, name, fence(delivery=4)) as last:
        await last.open(keep=True)
        await last.end(END)
    assert await read_all(connection, name) == ["A", "B"]


async def test_full_stream_is_an_overload_and_a_refusal_of_another_kind_is_passed_on(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object, **__: object) -> None:
        raise BrokerRefused("maximum bytes exceeded", err_code=10077, status=503)

    monkeypatch.setattr(connection, "js_publish", full)
    async with writer_of(connection, flow_of(pipeline)) as writer:
        await writer.put(chunk("a"))
        with pytest.raises(Overloaded, match="max_stored_bytes"):
            await writer.end(END)
