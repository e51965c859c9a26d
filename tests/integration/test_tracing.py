"""One trace of a request: the caller's context, the front door's span, and a span of each stage that ran."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from omnibus.broker.connection import Connection
from omnibus.observability.tracing import Tracing
from tests.support.front import front, omni_sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CHAT = {"messages": [{"role": "user", "content": "a red circle"}], "modalities": ["text", "image"]}


async def test_stages_join_the_callers_trace_when_it_sends_one(connection: Connection, pipeline: str) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with front(connection, omni_sim(pipeline), tracing=Tracing(provider)) as front_door:
        answer = await front_door.http.post(
            "/v1/chat/completions", json=CHAT, headers={"traceparent": f"00-{TRACE}-{SPAN}-01"}
        )
        assert answer.status_code == 200, answer.text
        await front_door.http.get("/v1/models")  # a look-up has no span
        spans = await eventually(lambda: len(exporter.get_finished_spans()) >= 3 and exporter.get_finished_spans())

    (http,) = [span for span in spans if span.name == "http"]
    stages = [span for span in spans if span.name == "stage"]
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}
    assert f"{http.parent.span_id:016x}" == SPAN
    assert {span.parent.span_id for span in stages} == {http.context.span_id}
    assert sorted(span.attributes["stage"] for span in stages) == ["painter", "writer"]
    assert {span.attributes["rid"] for span in stages} == {answer.headers["x-request-id"]}
