"""The events of a request through kill -9 of the front door that sends them, and of what works beside it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from omnibus.broker.listening import free_port
from omnibus.client.producer import Producer
from omnibus.wire import subjects
from omnibus.wire.request import Request, encode_request
from tests.support.breaking_http import breaking_http
from tests.support.cluster import HOST, Cluster, pipeline_of
from tests.support.event_reading import Event, all_of, check_whole, events_of, texts
from tests.support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
WORDS = 150
PIPELINE = f"""
name: followed
deadline: 120s
heartbeat_timeout: 2s
stages:
- {{stage_id: 0, name: writer, engine: sim, slots: 4, final_output: true, final_output_type: text,
   engine_args: {{outputs: {{text: text}}, token_rate: 30, tokens: {WORDS}}}}}
- {{stage_id: 1, name: painter, engine: sim, slots: 4, input_sources: [0], final_output: true, final_output_type: image,
   engine_args: {{outputs: {{image: image}}, steps: 8, latency: 2}}}}
"""
SEEN = 20
"""Events that a caller has when its front door dies."""


async def submitted(cluster: Cluster, how: str) -> str:
    """A request with text and picture, sent by a Python client, or raw and without anybody who listens."""
    request = Request(prompt="word", stream=True)
    if how == "raw":
        await cluster.connection.js_publish(subjects.request("followed", "the-raw-one"), encode_request(request))
        return "the-raw-one"
    async with Producer(cluster.connection) as producer:
        return (await producer.submit(cluster.spec, request)).rid


@pytest.mark.parametrize(
    ("how", "also"), [("python", ""), ("python", "worker-0"), ("raw", "orchestrator"), ("raw", "nats"), ("raw", "worker-0")]
)  # fmt: skip
async def test_no_event_is_missing_or_twice_when_the_front_door_is_killed(tmp_path: Path, how: str, also: str) -> None:
    port = free_port()
    async with (
        Cluster(tmp_path, pipeline_of(tmp_path, PIPELINE)) as cluster,
        breaking_http(cluster.url) as first,
        breaking_http(f"http://{HOST}:{port}") as second,
    ):
        rid = await submitted(cluster, how)

        async def known() -> bool:
            return (await first.get(f"/v1/requests/{rid}")).status_code == httpx.codes.OK

        await eventually(known, what="admitted")
        await cluster.start("frontdoor-2", "frontdoor", "--port", str(port))
        events = list[Event]()
        with suppress(httpx.TransportError):
            async for event in events_of(first, rid):
                events.append(event)
                if len(events) == SEEN:
                    await cluster.kill("frontdoor")
        assert len(events) >= SEEN
        assert events[-1]["type"] == "request.text.delta"
        if also == "nats":
            await cluster.kill_nats(outage=1.0)
        elif also:
            await cluster.kill(also)
            await (cluster.worker(0) if also == "worker-0" else cluster.orchestrator())

        async def answers() -> bool:
            with suppress(httpx.TransportError):
                return (await second.get("/ready")).status_code == httpx.codes.OK
            return False

        await eventually(answers, 30.0, what="the second front door is ready")
        events += await all_of(second, rid, events[-1]["cursor"])
        whole = (await second.get(f"/v1/requests/{rid}")).json()
    check_whole(events, whole)
    assert texts(events)["writer", ""].split() == ["word"] * WORDS
