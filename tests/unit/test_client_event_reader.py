"""Events are given once each, to callers that wait side by side, give up, and come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from omnibus.client.event_reader import EventReader
from omnibus.client.request_events import ClientEvent, TextPiece

pytestmark = pytest.mark.unit


def piece(text: str) -> TextPiece:
    return TextPiece(stage_id=0, text=text)


async def batches(*made: list[ClientEvent]) -> AsyncGenerator[list[ClientEvent], None]:
    for batch in made:
        await asyncio.sleep(0.01)
        yield batch


async def test_each_event_goes_to_one_of_two_that_wait() -> None:
    first, second, third, fourth = (piece(str(number)) for number in range(4))
    reader = EventReader(batches([first], [second, third], [fourth]))
    assert await asyncio.gather(anext(reader), anext(reader)) == [first, second]
    assert await asyncio.gather(anext(reader), anext(reader)) == [third, fourth]
    with pytest.raises(StopAsyncIteration):
        await anext(reader)
    await reader.aclose()


async def test_event_is_the_next_ones_when_a_caller_gave_up_waiting() -> None:
    reader = EventReader(batches([piece("one")], [piece("two")]))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(reader), 0.001)
    assert [await anext(reader), await anext(reader)] == [piece("one"), piece("two")]
    await reader.aclose()
