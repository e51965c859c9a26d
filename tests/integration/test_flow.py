"""Requests through whole pipelines of `sim` stages: routes, joins, ids, bounds, ends."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest
from structlog.testing import capture_logs

from omnibus.broker import delivery_loop
from omnibus.broker.connection import Connection
from omnibus.client import channel, following
from omnibus.client.producer import Producer
from omnibus.client.request_events import Ended, OutputArrived, TextPiece
from omnibus.errors import (
    DeadlineExceeded,
    EmptyPrompt,
    InvalidRequest,
    Overloaded,
    RequestCancelled,
    RequestConflict,
    UnknownRequest,
    UnsupportedModality,
)
from omnibus.ledger.work_queue import WorkQueue
from omnibus.pipeline.route import Forwarding
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.state import RequestState
from omnibus.wire import stores, subjects
from omnibus.wire.request import Request
from omnibus.workers.engines.sim import expected_text
from tests.support.flow import line, serving, sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
HELLO = Request(prompt="a red circle")


async def nothing_left(connection: Connection, pipeline: str) -> None:
    """Tasks, events and timers of ended requests are gone."""

    async def empty() -> bool:
        return (await WorkQueue(connection, pipeline).traffic()).messages == 0

    await eventually(empty, what="an empty queue")


@pytest.mark.parametrize("forwarding", Forwarding)
async def test_line_delivers_text_once_when_forwarded(
    connection: Connection, pipeline: str, forwarding: Forwarding
) -> None:
    spec = line(pipeline, forwarding)
    async with serving(connection, spec) as producer:
        submission = await producer.submit(spec, HELLO)
        events = [event async for event in submission.events()]
        ended = events[-1]
        assert isinstance(ended, Ended)
        assert ended.result.state is RequestState.DONE
        text = "".join(event.text for event in events if isinstance(event, TextPiece) and event.stage_id == 1)
        assert text == ended.result.outputs[0].text == expected_text("a red circle")
        assert [timing.stage_id for timing in ended.result.timings] == [0, 1]
        await nothing_left(connection, pipeline)


async def test_only_needed_stages_run_when_one_modality_is_asked(connection: Connection, pipeline: str) -> None:
    spec = PipelineSpec(
        name=pipeline, stages=(sim(0, final="text"), sim(1, 0, final="image", outputs={"image": "image"}))
    )
    async with serving(connection, spec) as producer:
        text_only = await (await producer.submit(spec, Request(prompt="hi", modalities=("text",)))).result()
        both = await (await producer.submit(spec, HELLO)).result()
    assert [timing.stage_id for timing in text_only.timings] == [0]
    assert [output.modality for output in both.outputs] == ["text", "image"]
    assert both.outputs[1].items[0].startswith(b"\x89PNG")


async def test_join_starts_once_when_all_its_sources_arrived(connection: Connection, pipeline: str) -> None:
    spec = PipelineSpec(
        name=pipeline,
        stages=(sim(0), sim(1, 0, latency=0.2), sim(2, 0), sim(3, 1, 2, final="text")),
    )
    async with serving(connection, spec, orchestrators=3) as producer:
        results = await asyncio.gather(*[(await producer.submit(spec, HELLO)).result() for _ in range(16)])
        await nothing_left(connection, pipeline)
    assert {result.state for result in results} == {RequestState.DONE}
    assert all(sorted(timing.stage_id for timing in result.timings) == [0, 1, 2, 3] for result in results)


async def test_each_output_arrives_when_it_is_ready(connection: Connection, pipeline: str) -> None:
    slow = sim(1, 0, final="image", outputs={"image": "image"}, latency=0.3)
    spec = PipelineSpec(name=pipeline, stages=(sim(0, final="text"), slow))
    async with serving(connection, spec) as producer:
        kinds = [type(event) for event in [event async for event in (await producer.submit(spec, HELLO)).events()]]
    assert kinds.index(OutputArrived) < len(kinds) - 2, "the text did not wait for the image"


async def test_large_outputs_travel_through_the_object_store(connection: Connection, pipeline: str) -> None:
    big = sim(0, outputs={"tensor": "tensor"}, size=100_000)
    spec = PipelineSpec(name=pipeline, stages=(big, sim(1, 0, final="text")))
    async with serving(connection, spec) as producer:
        result = await (await producer.submit(spec, HELLO)).result()
        assert result.state is RequestState.DONE
        assert result.timings[0].bytes_out > 256 * 1024
        await eventually(lambda: _stored_bytes(connection, pipeline), what="its payloads are freed at its end")


@pytest.mark.usefixtures("quick_reads")
async def test_same_id_attaches_and_another_request_conflicts(connection: Connection, pipeline: str) -> None:
    spec = line(pipeline)
    async with serving(connection, spec) as producer, Producer(connection) as elsewhere:
        first = await producer.submit(spec, HELLO, rid="mine")
        second = await elsewhere.submit(spec, HELLO, rid="mine")
        assert (first.attached, second.attached) == (False, True)
        assert (await first.result()).outputs == (await second.result()).outputs
        again = await elsewhere.submit(spec, HELLO, rid="mine")
        assert (await again.result()).outputs == (await first.result()).outputs
        with pytest.raises(RequestConflict):
            await producer.submit(spec, Request(prompt="something else"), rid="mine")


async def test_cancel_ends_a_running_request_and_frees_its_slot(connection: Connection, pipeline: str) -> None:
    spec = PipelineSpec(name=pipeline, stages=(sim(0, final="text", latency=30.0),), heartbeat_timeout=1.0)
    async with serving(connection, spec) as producer:
        submission = await producer.submit(spec, HELLO)
        assert (await producer.cancel(pipeline, submission.rid)).state is RequestState.CANCELLED
        result = await submission.result()
        with pytest.raises(RequestCancelled):
            result.raise_for_state()
        assert (await producer.cancel(pipeline, submission.rid)).state is RequestState.CANCELLED
        await nothing_left(connection, pipeline)
        with pytest.raises(UnknownRequest):
            await producer.cancel(pipeline, "nobody")


async def test_deadline_ends_a_request_when_no_worker_is_there(connection: Connection, pipeline: str) -> None:
    spec = line(pipeline)
    async with serving(connection, spec, replicas=0) as producer:
        result = await (await producer.submit(spec, Request(prompt="hi", deadline=0.5))).result()
        assert result.state is RequestState.EXPIRED
        with pytest.raises(DeadlineExceeded):
            result.raise_for_state()
        await nothing_left(connection, pipeline)


async def test_follower_gives_up_when_nobody_ends_an_expired_request(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an orchestrator a deadline ends nothing."""
    monkeypatch.setattr(following, "GIVE_UP_AFTER", 0.3)
    monkeypatch.setattr(channel, "READ_EVERY", 0.1)
    spec = line(pipeline)
    async with serving(connection, spec, orchestrators=0, replicas=0) as producer:
        submission = await producer.submit(spec, Request(prompt="hi", deadline=0.2))
        with pytest.raises(DeadlineExceeded, match="no orchestrator"):
            await submission.result()


async def test_nothing_is_kept_of_a_request_when_its_result_was_read(connection: Connection, pipeline: str) -> None:
    spec = line(pipeline)
    async with serving(connection, spec) as producer:
        channel = await producer.channel(pipeline)
        await (await producer.submit(spec, HELLO)).result()
        assert not channel._mailboxes
        assert not channel._early


async def test_bounds_refuse_when_too_much_is_open(connection: Connection, pipeline: str) -> None:
    spec = line(pipeline, max_open_requests=6, max_open_per_tenant=3)
    async with serving(connection, spec, replicas=0) as producer:
        for _ in range(3):
            await producer.submit(spec, HELLO)
        with pytest.raises(Overloaded, match="tenant"):
            await producer.submit(spec, HELLO)
        for tenant in "abc":
            await producer.submit(spec, Request(prompt="hi", tenant=tenant))
        with pytest.raises(Overloaded, match="open requests"):
            await producer.submit(spec, Request(prompt="hi", tenant="d"))


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Request(prompt=" "), EmptyPrompt),
        (Request(), InvalidRequest),
        (Request(prompt="hi", modalities=("smell",)), UnsupportedModality),
        (Request(prompt="hi", sampling_params={"nobody": {}}), InvalidRequest),
        (Request(prompt="hi", lane="batch"), InvalidRequest),
        (Request(prompt="hi", deadline=-1.0), InvalidRequest),
    ],
)
async def test_invalid_request_queues_nothing(
    connection: Connection, pipeline: str, request_: Request, error: type[Exception]
) -> None:
    spec = line(pipeline)
    async with serving(connection, spec, replicas=0) as producer:
        with pytest.raises(error):
            await producer.submit(spec, request_)
        assert (await WorkQueue(connection, pipeline).traffic()).messages == 0


@pytest.mark.parametrize("encode", [json.dumps, msgspec.msgpack.encode], ids=["json", "msgpack"])
async def test_raw_request_is_served_when_published(connection: Connection, pipeline: str, encode: object) -> None:
    spec = line(pipeline)
    async with serving(connection, spec) as producer:
        body = encode({"prompt": "a red circle"})  # type: ignore[operator]
        data = body.encode() if isinstance(body, str) else body
        await connection.js_publish(subjects.request(pipeline, "raw1"), data, headers={"Omni-Reply": producer.front})
        result = await _appears(producer, pipeline, "raw1")
        assert result.state is RequestState.DONE
        assert result.outputs[0].text == expected_text("a red circle")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\xff\x00 nonsense", "invalid_request"),
        (b'{"prompt": 7}', "invalid_request"),
        (b'{"prompt": ""}', "empty_prompt"),
        (b'{"prompt": "hi", "modalities": ["smell"]}', "unsupported_modality"),
    ],
)
async def test_raw_request_ends_failed_when_invalid(
    connection: Connection, pipeline: str, body: bytes, code: str
) -> None:
    spec = line(pipeline)
    async with serving(connection, spec, replicas=0) as producer:
        await connection.js_publish(subjects.request(pipeline, "bad"), body)
        result = await _appears(producer, pipeline, "bad")
    assert result.state is RequestState.FAILED
    assert result.failure is not None
    assert result.failure.code == code


async def test_malformed_event_fails_its_request_only(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_loop, "_RETRY", 0.02)
    spec = PipelineSpec(name=pipeline, stages=(sim(0, final="text", latency=4.0),), heartbeat_timeout=1.0)
    async with serving(connection, spec) as producer:
        poisoned, healthy = await producer.submit(spec, HELLO), await producer.submit(spec, HELLO)
        await connection.js_publish(subjects.event(pipeline, 0, "final", poisoned.rid), b"\xc1junk")
        assert (await poisoned.result()).state is RequestState.FAILED
        assert (await healthy.result()).state is RequestState.DONE


async def _stored_bytes(connection: Connection, pipeline: str) -> bool:
    """Whether the object store holds no more than metadata."""
    info = await connection.api(f"STREAM.INFO.OBJ_{stores.payloads_bucket(pipeline)}")
    return int(info["state"]["bytes"]) < 4096


async def _appears(producer: Producer, pipeline: str, rid: str):
    """The result of a request that is only just being admitted."""

    async def known() -> bool:
        try:
            await producer.result(pipeline, rid)
        except UnknownRequest:
            return False
        return True

    await eventually(known, what="a record")
    return await producer.wait(pipeline, rid)


async def test_event_of_an_impossible_id_is_acknowledged(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record can bear such a name: left in the queue, it would come again for ever."""
    monkeypatch.setattr(delivery_loop, "_RETRY", 0.02)
    spec = line(pipeline)
    async with serving(connection, spec, replicas=0):
        await connection.js_publish(subjects.event(pipeline, 0, "result", "x") + 64 * "x", b"garbage")
        await nothing_left(connection, pipeline)


async def test_ends_are_counted_by_state(connection: Connection, pipeline: str) -> None:
    spec = line(pipeline)

    def ended(state: str) -> float | None:
        return connection.metrics.registry.get_sample_value(
            "omnibus_requests_total", {"pipeline": pipeline, "state": state}
        )

    with capture_logs() as logged:
        async with serving(connection, spec) as producer:
            await (await producer.submit(spec, HELLO)).result()
            await eventually(lambda: ended("done") == 1.0)
    (line_of_end,) = [entry for entry in logged if entry["event"] == "request.done"]
    assert "code" not in line_of_end, "nothing has failed"
    async with serving(connection, spec, replicas=0) as producer:
        with pytest.raises(DeadlineExceeded):
            (await (await producer.submit(spec, Request(prompt="x", deadline=0.1))).result()).raise_for_state()
        await eventually(lambda: ended("expired") == 1.0)


async def test_raw_requests_wait_in_their_stream_when_the_pipeline_is_full(
    connection: Connection, pipeline: str
) -> None:
    spec = line(pipeline, max_open_requests=2)
    async with serving(connection, spec, replicas=0) as producer:
        for _ in range(2):
            await producer.submit(spec, Request(prompt="hi", deadline=1.5))
        await connection.js_publish(subjects.request(pipeline, "raw2"), b'{"prompt": "hi", "deadline": 0.3}')
        with pytest.raises(UnknownRequest):
            await producer.result(pipeline, "raw2")
        result = await _appears(producer, pipeline, "raw2")
    assert result.state is RequestState.EXPIRED, "admitted once there was room"


async def test_accepted_request_is_attached_to_when_the_pipeline_is_full(connection: Connection, pipeline: str) -> None:
    spec = line(pipeline, max_open_requests=1)
    async with serving(connection, spec, replicas=0) as producer:
        await producer.submit(spec, HELLO, rid="mine")
        with pytest.raises(Overloaded):
            await producer.submit(spec, HELLO, rid="other")
        assert (await producer.submit(spec, HELLO, rid="mine")).attached
