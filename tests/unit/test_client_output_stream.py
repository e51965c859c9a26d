"""The outputs of a façade's request: what is cleaned up when sending its segments failed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from omnibus.client.output_queue import OutputQueue
from omnibus.client.output_stream import Following, OutputStream
from omnibus.client.request_outputs import OmniRequestOutput
from omnibus.errors import BrokerUnavailable

pytestmark = pytest.mark.unit


async def test_request_still_counts_as_running_when_a_segment_failed_before_its_end() -> None:
    queue: OutputQueue[OmniRequestOutput] = OutputQueue(lambda _: 1)
    running_at_the_end: list[bool] = []

    async def lifetime() -> AsyncGenerator[Following, None]:
        submitting = asyncio.create_task(asyncio.sleep(0))
        following = Following(queue, submitting, failures=[BrokerUnavailable("a segment was not taken")])
        try:
            yield following
        finally:
            running_at_the_end.append(not following.is_over)

    await queue.put(OmniRequestOutput(request_id="a", prompt="hi"))
    stream = OutputStream(lifetime())
    with pytest.raises(BrokerUnavailable):
        await anext(stream)
    assert running_at_the_end == [True]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
