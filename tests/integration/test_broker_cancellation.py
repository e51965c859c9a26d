"""A cancellation is never swallowed, whatever comes in at the same moment."""

from __future__ import annotations

import asyncio

import pytest

from omnibus.broker.connection import Connection

pytestmark = pytest.mark.integration


async def test_cancellation_is_heeded_when_the_answer_comes_in_the_same_turn(connection: Connection) -> None:
    async def never(_message: object) -> None: ...

    await connection.subscribe("cancelled.question", never)
    task = asyncio.create_task(connection.request("cancelled.question", timeout=30.0))
    await asyncio.sleep(0)  # in which it asks
    ((_, _, _, answer),) = connection._replies.waiting.values()
    answer.set_exception(RuntimeError("too late"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_subscribing_heeds_cancellation_at_every_moment(connection: Connection) -> None:
    async def callback(_message: object) -> None: ...

    async def serve(turns: int) -> None:
        await connection.subscribe(f"cancelled.{turns}", callback)
        await asyncio.Event().wait()

    for turns in range(200):
        task = asyncio.create_task(serve(turns))
        for _ in range(turns % 20):
            await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(5.0):
            await asyncio.wait({task})
        assert task.cancelled()


async def test_publishing_heeds_cancellation_when_the_buffer_is_full(connection: Connection) -> None:
    piece = bytes(connection.max_payload)

    async def flood() -> None:
        for _ in range(3):  # the third finds more than 16 MiB waiting
            await connection.publish("cancelled.flood", piece)
        await asyncio.Event().wait()

    for turns in range(1, 6):
        task = asyncio.create_task(flood())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(5.0):
            await asyncio.wait({task})
        assert task.cancelled()
