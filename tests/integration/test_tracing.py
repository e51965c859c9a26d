"""One trace of a request, as a receiver of OTLP gets it from the real exporter: one root, and all else under it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from omnibus.broker.connection import Connection
from omnibus.errors import UnknownRequest
from omnibus.observability.tracing import Tracing, open_tracing
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire import stores, subjects
from omnibus.wire.request import Request, encode_request
from tests.support.front import front, omni_sim
from tests.support.otlp import Collector, Received, collector
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
CHAT = {"messages": [{"role": "user", "content": "a red circle"}], "modalities": ["text", "image"]}
CONSUMER, SERVER, PRODUCER = 5, 2, 4
"""Kinds of spans, by the numbers that they have in `opentelemetry-proto`."""


@pytest.fixture
def received() -> Iterator[Collector]:
    with collector() as found:
        yield found


def large(name: str) -> PipelineSpec:
    """Two stages, the first of which hands more over than an envelope carries."""
    return PipelineSpec(
        name=name, deadline=30.0,
        stages=(
            StageSpec(stage_id=0, name="writer", engine="sim", engine_args={"outputs": {"latent": "tensor"}, "size": 400_000}),
            StageSpec(
                stage_id=1, name="painter", engine="sim", input_sources=(0,), final_output=True, final_output_type="text",
                engine_args={"outputs": {"text": "text"}},
            ),
        ),
    )  # fmt: skip


def named(spans: list[Received]) -> list[str]:
    return sorted(one.name for one in spans)


async def test_stages_and_waits_join_the_callers_trace_when_it_sends_one(
    connection: Connection, pipeline: str, received: Collector
) -> None:
    tracing = open_tracing(received.url, "all", protocol="http/protobuf")
    async with front(connection, omni_sim(pipeline), tracing=tracing) as front_door:
        answer = await front_door.http.post("/v1/chat/completions", json=CHAT, headers=PARENT)
        assert answer.status_code == 200, answer.text
        await front_door.http.get("/v1/models")  # a look-up has no span
    tracing.close()

    root, children = received.tree(TRACE, outside=SPAN)
    assert (root.name, root.kind) == ("POST /v1/chat/completions", SERVER)
    assert root.attributes["http.response.status_code"] == 200
    assert named(children[root.span]) == sorted([
        f"publish {pipeline}", "process painter", "process writer", "receive painter", "receive writer", "route", "route",
    ])  # fmt: skip
    by_name = {one.name: one for one in children[root.span]}
    for stage in ("writer", "painter"):
        waited, ran = by_name[f"receive {stage}"], by_name[f"process {stage}"]
        assert waited.end <= ran.start + 0.05
        assert ran.attributes["omnibus.request_id"] == answer.headers["x-request-id"]
        assert ran.attributes["messaging.system"] == "nats"
        assert ran.attributes["messaging.destination.name"] == stores.work_stream(pipeline)
        assert ran.kind == CONSUMER
    assert by_name["process writer"].attributes["gen_ai.operation.name"] == "chat"
    assert by_name["process writer"].attributes["gen_ai.usage.output_tokens"] > 0  # type: ignore[operator]
    assert by_name["process painter"].attributes["gen_ai.output.type"] == "image"
    assert by_name[f"publish {pipeline}"].kind == PRODUCER


async def test_payloads_are_under_the_stage_that_puts_or_gets_them(
    connection: Connection, pipeline: str, received: Collector
) -> None:
    tracing = open_tracing(received.url, "all", protocol="http/protobuf")
    async with front(connection, large(pipeline), tracing=tracing) as front_door:
        result = await (await front_door.producer.submit(front_door.spec, Request(prompt="a"))).result()
        assert result.state == "done", result.failure
    tracing.close()
    (trace,) = {one.trace for one in received.spans}
    root, children = received.tree(trace)
    assert root.name == f"publish {pipeline}"
    spans = {one.name: one for one in children[root.span]}
    (put,), (got,) = children[spans["process writer"].span], children[spans["process painter"].span]
    assert (put.name, got.name) == ("payload put", "payload get")
    for one in (put, got):
        assert one.attributes["omnibus.payload.location"] == "object"
        assert one.attributes["omnibus.payload.bytes"] >= 400_000  # type: ignore[operator]


async def test_attempt_after_a_failure_links_to_the_first_one(
    connection: Connection, pipeline: str, received: Collector
) -> None:
    tracing = open_tracing(received.url, "all", protocol="http/protobuf")
    spec = omni_sim(pipeline, fail_on={"attempts": [1, 2]})
    async with front(connection, spec, tracing=tracing) as front_door:
        answer = await front_door.http.post(
            "/v1/chat/completions", json={**CHAT, "modalities": ["text"]}, headers=PARENT
        )
        assert answer.status_code == 200, answer.text
    tracing.close()
    received.tree(TRACE, outside=SPAN)
    first, second, third = [one for one in received.of(TRACE) if one.name == "process writer"]
    assert (first.failed, second.failed, third.failed) == (True, True, False)
    assert first.attributes["error.type"] == "engine_error"
    assert (first.links, second.links, third.links) == ((), (first.span,), (first.span,))
    assert [one.attributes["omnibus.attempt"] for one in (first, second, third)] == [1, 2, 3]
    assert len([one for one in received.of(TRACE) if one.name == "receive writer"]) == 1


async def test_raw_request_brings_its_trace_in_the_headers_of_its_message(
    connection: Connection, pipeline: str, received: Collector
) -> None:
    tracing = open_tracing(received.url, "all", protocol="http/protobuf")
    async with front(connection, omni_sim(pipeline), tracing=tracing) as front_door:
        body = encode_request(Request(prompt="a", modalities=("text",)))
        await connection.js_publish(subjects.request(pipeline, "raw"), body, headers=PARENT)

        async def is_admitted() -> bool:
            with suppress(UnknownRequest):
                return bool(await front_door.producer.result(pipeline, "raw"))
            return False

        await eventually(is_admitted, what="it is admitted")
        result = await front_door.producer.wait(pipeline, "raw")
        assert result.state == "done"
    tracing.close()
    assert {"receive writer", "process writer"} <= {one.name for one in received.of(TRACE) if one.parent == SPAN}


async def test_no_span_is_made_when_nobody_records_them(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: object, **__: object) -> None:
        raise AssertionError("a hot path paid for a span")

    for name in ("span", "past"):
        monkeypatch.setattr(Tracing, name, made)
    async with front(connection, large(pipeline)) as front_door:
        answer = await front_door.http.post("/v1/chat/completions", json={"messages": CHAT["messages"]}, headers=PARENT)
        assert answer.status_code == 200, answer.text


async def test_tasks_carry_the_trace_as_headers_when_nobody_records_spans(
    connection: Connection, pipeline: str
) -> None:
    async with front(connection, omni_sim(pipeline), workers=False) as front_door:
        request = Request(prompt="a", trace={**PARENT, "other": "x"}, modalities=("text",))
        await front_door.producer.submit(front_door.spec, request, rid="r")
        work = stores.work_stream(pipeline)
        wanted = b'{"last_by_subj":"omni.%b.task.>"}' % pipeline.encode()
        found = await connection.retried_request(f"$JS.API.DIRECT.GET.{work}", wanted)
        assert found.headers is not None
        assert found.headers["traceparent"] == PARENT["traceparent"]
        assert "other" not in found.headers
