"""Streamed responses in the background through kill -9 of the front door that makes them, and of what works beside it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import ResponseStreamEvent

from omnibus.broker.listening import free_port
from tests.support.cluster import HOST, Cluster, pipeline_of
from tests.support.response_reading import check_events, read_on

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
WORDS = 150
PIPELINE = f"""
name: kept-responses
deadline: 120s
heartbeat_timeout: 2s
stages:
- {{stage_id: 0, name: writer, engine: sim, slots: 4, final_output: true, final_output_type: text,
   engine_args: {{token_rate: 30, tokens: {WORDS}}}}}
"""
SEEN = 20
"""Events that a caller has when its front door dies."""


def client_of(port: int) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"http://{HOST}:{port}/v1", api_key="any", max_retries=3, timeout=60.0)


@pytest.mark.parametrize("also", ["", "worker-0", "orchestrator", "nats"])
async def test_no_event_is_missing_or_twice_when_its_front_door_is_killed(tmp_path: Path, also: str) -> None:
    port = free_port()
    async with (
        Cluster(tmp_path, pipeline_of(tmp_path, PIPELINE)) as cluster,
        client_of(cluster.port) as first,
        client_of(port) as second,
    ):
        stream = await first.responses.create(model="kept-responses", input="word", background=True, stream=True)
        events: list[ResponseStreamEvent] = [await anext(stream) for _ in range(SEEN)]
        response_id = events[0].response.id  # type: ignore[union-attr]
        await cluster.start("frontdoor-2", "frontdoor", "--port", str(port))  # the first one has the response in hand
        await cluster.kill("frontdoor")
        with suppress(openai.APIError):  # what had left before the death
            async for event in stream:
                events.append(event)  # noqa: PERF401 those before the break count
        if also == "nats":
            await cluster.kill_nats(outage=1.0)
        elif also:
            await cluster.kill(also)
            await (cluster.worker(0) if also == "worker-0" else cluster.orchestrator())
        await read_on(second, response_id, events)
        await cluster.front_door()
        repeated: list[ResponseStreamEvent] = []
        await read_on(first, response_id, repeated)
        end = await first.responses.retrieve(response_id)
    check_events(events, end)
    assert repeated == events
    assert end.output_text.split() == ["word"] * WORDS
