"""The declared layout: made once, compared, brought up to date."""

from __future__ import annotations

import asyncio

import pytest

from omnibus.broker.connection import STREAM_FULL, Connection
from omnibus.broker.layout import (
    Layout,
    compare,
    ensure_layout,
    own_lane_consumer,
    plan,
)
from omnibus.broker.puller import Puller
from omnibus.errors import BrokerRefused
from omnibus.wire import stores, subjects
from tests.support.broker import describe
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration

LANES = {0: ("interactive", "batch"), 1: ("interactive",)}


async def test_layout_is_made_once_when_ensured_again(connection: Connection, pipeline: str) -> None:
    layout = describe(pipeline, LANES)
    made = await ensure_layout(connection, layout)
    assert {change.action for change in made} == {"create"}
    assert [str(change) for change in await ensure_layout(connection, layout)] == []


async def test_layout_is_made_once_when_several_ensure_it_at_the_same_time(
    connection: Connection, pipeline: str
) -> None:
    layout = describe(pipeline, LANES)
    await asyncio.gather(*(ensure_layout(connection, layout) for _ in range(4)))
    assert await plan(connection, layout) == []


async def test_layout_is_updated_and_says_how_when_a_setting_changes(connection: Connection, pipeline: str) -> None:
    await ensure_layout(connection, describe(pipeline, LANES, heartbeat_timeout=10))
    changed = describe(pipeline, {**LANES, 2: ("interactive",)}, heartbeat_timeout=4, max_open_requests=5)
    described = [str(change) for change in await plan(connection, changed)]
    assert f"update stream OMNI_{pipeline}_REQUESTS (max_msgs: 10000 → 5)" in described
    assert f"create consumer of OMNI_{pipeline}_WORK stage-2-interactive" in described
    assert any("stage-0-batch (ack_wait: 10000000000 → 4000000000)" in text for text in described)
    await ensure_layout(connection, changed)
    assert await plan(connection, changed) == []


async def test_requests_are_refused_when_too_many_wait_but_work_is_not(connection: Connection, pipeline: str) -> None:
    await ensure_layout(connection, describe(pipeline, LANES, max_open_requests=2))
    for rid in ("a", "b"):
        await connection.js_publish(subjects.request(pipeline, rid), b"x")
    with pytest.raises(BrokerRefused) as caught:
        await connection.js_publish(subjects.request(pipeline, "c"), b"x")
    assert caught.value.err_code == STREAM_FULL
    work = await connection.api(f"STREAM.INFO.{stores.work_stream(pipeline)}")
    assert (work["config"]["max_msgs"], work["config"]["max_bytes"], work["config"]["discard"]) == (-1, -1, "old")


async def test_everything_is_kept_in_files_when_laid_out(connection: Connection, pipeline: str) -> None:
    layout = describe(pipeline, LANES)
    await ensure_layout(connection, layout)
    for stream in layout.streams:
        info = await connection.api(f"STREAM.INFO.{stream.name}")
        assert info["config"]["storage"] == "file"  # one in memory would be gone after a crash


async def test_own_lane_stays_while_its_replica_works_and_goes_when_nobody_reads_it(
    connection: Connection, pipeline: str
) -> None:
    await ensure_layout(connection, describe(pipeline, LANES))
    lane = own_lane_consumer(pipeline, 0, "r7", heartbeat_timeout=0.1)
    own = Layout((), (lane,))
    assert [change.action for change in await ensure_layout(connection, own)] == ["create"]
    assert await ensure_layout(connection, own) == []
    idle = lane.config["inactive_threshold"] / 1e9

    await connection.js_publish(subjects.task(pipeline, 0, "r7", "a"), b"")
    async with Puller(connection, lane.stream, [lane.name], lease=0.1) as puller:
        puller.add_credit()
        delivery = await puller.take()
        until = asyncio.get_running_loop().time() + 2 * idle
        while asyncio.get_running_loop().time() < until:
            await connection.publish(delivery.ack_subject, b"+WPI")
            await asyncio.sleep(0.03)
        assert await connection.find(f"CONSUMER.INFO.{lane.stream}.{lane.name}") is not None
        await delivery.ack()

    async def gone() -> bool:
        return await connection.find(f"CONSUMER.INFO.{lane.stream}.{lane.name}") is None

    await eventually(gone, 10 * idle)


def test_settings_count_as_equal_when_the_server_leaves_out_zeros() -> None:
    assert compare({"max_age": 0, "deny_delete": False, "name": "x"}, {"name": "x", "other": 1}) == ()
    assert compare({"max_age": 5}, {}) == ("max_age: None → 5",)
