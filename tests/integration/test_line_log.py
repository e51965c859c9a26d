"""Logs, of a batch's answers and of responses: whole lines, in the order of the appends, of one runner after the other."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping

import pytest

from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.broker.objects import CHUNK, ObjectInfo
from omnibus.broker.streamed_objects import StreamedObjects
from omnibus.errors import BrokerUnavailable, RevisionConflict
from omnibus.files.line_log import LineLog, LogFollower
from omnibus.wire import stores
from tests.support.flow import line
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


async def log_of(connection: Connection, pipeline: str, name: str) -> LineLog:
    await ensure_layout(connection, layout_of(line(pipeline)))
    return LineLog(connection, name, ttl=600.0)


async def read(log: LineLog) -> list[bytes]:
    return [one async for one in log.lines()]


@pytest.fixture
def name() -> str:
    return f"batch_{secrets.token_hex(16)}"


async def test_lines_come_back_in_order_when_some_are_larger_than_a_message(
    connection: Connection, pipeline: str, name: str
) -> None:
    log = await log_of(connection, pipeline, name)
    assert await read(log) == []
    lines = [b"a", b"b" * (3 * CHUNK + 5), b"", b"c" * (CHUNK - 1), b"d" * CHUNK]
    for one in lines:
        await log.append(one + b"\n")
    assert await read(log) == lines
    assert await read(LineLog(connection, name, ttl=600.0)) == lines
    await log.remove()
    await log.remove()
    assert await read(LineLog(connection, name, ttl=600.0)) == []


async def test_every_line_is_stored_once_when_many_append_at_the_same_time(
    connection: Connection, pipeline: str, name: str
) -> None:
    log = await log_of(connection, pipeline, name)
    lines = [b"%d" % number * (number % 7 + 1) for number in range(1000, 1500)]
    await asyncio.gather(*(log.append(one + b"\n") for one in lines))
    assert sorted(await read(log)) == sorted(lines)


async def test_a_runner_appends_nothing_when_another_has_appended(
    connection: Connection, pipeline: str, name: str
) -> None:
    first = await log_of(connection, pipeline, name)
    await first.append(b"one\n")
    second = LineLog(connection, name, ttl=600.0)
    assert await read(second) == [b"one"]
    await second.append(b"two\n")
    with pytest.raises(RevisionConflict):
        await first.append(b"late\n")
    with pytest.raises(RevisionConflict):
        await first.append(b"later\n")
    unread = LineLog(connection, name, ttl=600.0)
    with pytest.raises(RevisionConflict):
        await unread.append(b"without having read\n")
    assert await read(second) == [b"one", b"two"]


async def test_nobody_is_told_stored_when_the_write_that_they_shared_failed(
    connection: Connection, pipeline: str, name: str
) -> None:
    first = await log_of(connection, pipeline, name)
    await LineLog(connection, name, ttl=600.0).append(b"another's\n")
    outcomes = await asyncio.gather(*(first.append(b"%d\n" % number) for number in range(4)), return_exceptions=True)
    assert [type(one) for one in outcomes] == [RevisionConflict] * 4
    assert await read(first) == [b"another's"]


async def test_nothing_is_lost_when_a_write_is_given_up_half_done(
    connection: Connection, pipeline: str, name: str
) -> None:
    log = await log_of(connection, pipeline, name)
    given_up = asyncio.create_task(log.append(b"given up\n"))
    sharing = [asyncio.create_task(log.append(b"%d\n" % number)) for number in range(3)]
    await asyncio.sleep(0)
    given_up.cancel()
    outcomes = await asyncio.gather(given_up, *sharing, return_exceptions=True)
    assert [type(one) for one in outcomes] == [asyncio.CancelledError, *[BrokerUnavailable] * 3]
    with pytest.raises(BrokerUnavailable):
        await log.append(b"not before it is read again\n")

    async def is_appended() -> bool:
        await read(log)  # which may come before the server has stored what was on its way
        try:
            await log.append(b"after\n")
        except RevisionConflict:
            return False
        return True

    await eventually(is_appended, what="the next line is stored")
    lines = await read(log)
    assert lines[-1] == b"after"
    assert set(lines[:-1]) <= {b"given up"}


async def test_who_shares_a_write_learns_of_it_when_its_holder_is_cancelled(
    connection: Connection, pipeline: str, name: str
) -> None:
    log = await log_of(connection, pipeline, name)
    tasks = [asyncio.create_task(log.append(b"%d\n" % number)) for number in range(4)]
    await tasks[0]
    await asyncio.sleep(0)  # the second of them writes what the others wait for
    tasks[1].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in outcomes] == [type(None), asyncio.CancelledError, *[BrokerUnavailable] * 2]


async def test_a_part_of_a_line_stays_apart_when_its_runner_died_in_the_middle(
    connection: Connection, pipeline: str, name: str
) -> None:
    first = await log_of(connection, pipeline, name)
    await first.append(b"one\ntwo, of which only a par")
    second = LineLog(connection, name, ttl=600.0)
    assert await read(second) == [b"one"]
    await second.append(b"two, whole\nthree\n")
    assert await read(second) == [b"one", b"two, of which only a par", b"two, whole", b"three"]


async def test_a_follower_has_every_line_once_while_the_log_grows(
    connection: Connection, pipeline: str, name: str
) -> None:
    log = await log_of(connection, pipeline, name)
    lines = [b"%d" % number * (CHUNK // 40) for number in range(60)]

    async def grow() -> None:
        for one in lines:
            await log.append(one + b"\n")

    growing, seen = asyncio.create_task(grow()), list[bytes]()
    async with LogFollower(connection, name) as early, asyncio.timeout(30.0):
        while len(seen) < len(lines):
            seen += await early.read()
    await growing
    assert seen == lines
    async with LogFollower(connection, name) as late:
        assert await late.read() == lines


class Unacknowledged(StreamedObjects):
    """A store whose answers to metadata are lost."""

    async def put_info(self, info: ObjectInfo, headers: Mapping[str, str] | None = None) -> None:
        await super().put_info(info, headers)
        raise BrokerUnavailable("the acknowledgement is lost")


async def test_a_file_can_be_read_when_its_writer_did_not_learn_that_it_was_stored(
    connection: Connection, pipeline: str, name: str
) -> None:
    await log_of(connection, pipeline, name)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"answers"

    with pytest.raises(BrokerUnavailable):
        await Unacknowledged(connection, stores.FILES_BUCKET).store(name, pieces(), ttl=600.0)
    read_again = StreamedObjects(connection, stores.FILES_BUCKET).read(name)
    assert [one async for one in read_again] == [b"answers"]
