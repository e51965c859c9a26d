"""Deadlines end requests wherever they are, and their callers hear of it in time whoever is there to end them."""

from __future__ import annotations

import asyncio
import time

import pytest

from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.client.producer import Producer
from omnibus.errors import UnknownRequest
from omnibus.frontdoor.idempotency_keys import keyed_rid
from omnibus.orchestrator.service import OrchestratorService
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.deployed_pipelines import deploy_pipeline
from omnibus.requests.state import RequestState
from omnibus.wire import subjects
from omnibus.wire.request import Request
from tests.support.flow import line, serving
from tests.support.front import front, omni_sim
from tests.support.served import omnibus
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


async def ended(producer: Producer, pipeline: str, rid: str) -> str | None:
    """The state of a request once it has ended."""
    try:
        state = (await producer.result(pipeline, rid)).state
    except UnknownRequest:
        return None
    return state.value if state.terminal else None


async def test_slot_is_free_when_the_deadline_of_its_job_passes(connection: Connection, pipeline: str) -> None:
    stage = StageSpec(
        stage_id=0, name="s0", engine="sim", slots=1, final_output=True, final_output_type="text",
        engine_args={"hang_on": {"rid": "^stuck"}},
    )  # fmt: skip
    spec = PipelineSpec(name=pipeline, stages=(stage,), deadline=20.0, heartbeat_timeout=1.0)
    async with serving(connection, spec) as producer:
        stuck = await producer.submit(spec, Request(prompt="hi", deadline=0.3), rid="stuck")
        waits = await producer.submit(spec, Request(prompt="hi"), rid="next")
        async with asyncio.timeout(5.0):
            assert (await waits.result()).state is RequestState.DONE
        assert (await stuck.result()).state is RequestState.EXPIRED


@pytest.mark.parametrize("stream", [False, True])
async def test_caller_has_a_504_in_time_when_no_orchestrator_is_there_and_the_end_is_recorded_once_one_is(
    connection: Connection, pipeline: str, stream: bool
) -> None:
    spec = omni_sim(pipeline)
    async with front(connection, spec, workers=False) as front_door:
        body = {
            "model": pipeline, "messages": [{"role": "user", "content": "hi"}], "deadline": 0.4, "stream": stream
        }  # fmt: skip
        headers = {"Idempotency-Key": "late"}
        began = time.monotonic()
        answer = await front_door.http.post("/v1/chat/completions", json=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert time.monotonic() - began < 4.0
        began = time.monotonic()
        again = await front_door.http.post("/v1/chat/completions", json=body, headers=headers)
        assert again.status_code == 504
        assert time.monotonic() - began < 3.0, "counted from its own deadline"
        rid = keyed_rid("default", pipeline, "late")
        assert await ended(front_door.producer, pipeline, rid) is None, "nobody has ended it"
        orchestrator = asyncio.create_task(OrchestratorService(connection, spec).run())
        try:
            await eventually(lambda: ended(front_door.producer, pipeline, rid), what="its end")
            assert await ended(front_door.producer, pipeline, rid) == "expired"
        finally:
            orchestrator.cancel()
            await asyncio.gather(orchestrator, return_exceptions=True)


async def test_raw_request_expires_when_it_waited_for_an_orchestrator_beyond_its_deadline(
    connection: Connection, pipeline: str
) -> None:
    """Its time counts from its acceptance, which is the broker's acknowledgement."""
    spec = line(pipeline)
    await ensure_layout(connection, layout_of(spec))
    subject = subjects.request(pipeline, "late")
    ack = await connection.js_publish(subject, b'{"prompt": "hi", "deadline": 0.4}')
    assert ack.seq == 1
    await asyncio.sleep(0.5)  # nobody is there for that long
    async with serving(connection, spec) as producer:
        assert await eventually(lambda: ended(producer, pipeline, "late")) == "expired"
        assert (await producer.result(pipeline, "late")).timings == (), "no stage has seen it"


async def test_raw_request_has_what_is_left_of_its_time_when_it_is_admitted_late(
    connection: Connection, pipeline: str
) -> None:
    spec = line(pipeline)
    await ensure_layout(connection, layout_of(spec))
    await connection.js_publish(subjects.request(pipeline, "late"), b'{"prompt": "hi", "deadline": 5.0}')
    published = connection.clock.now()
    await asyncio.sleep(0.5)  # nobody is there for that long
    async with serving(connection, spec, replicas=0) as producer:
        admitted = await eventually(lambda: _known(producer, pipeline, "late"))
        assert admitted.deadline == pytest.approx(published + 5.0, abs=0.3)


async def test_raw_request_expires_when_the_pipeline_stays_full(connection: Connection, pipeline: str) -> None:
    spec = line(pipeline, max_open_requests=1)
    async with serving(connection, spec, replicas=0) as producer:
        await producer.submit(spec, Request(prompt="hi"), rid="first")
        await connection.js_publish(subjects.request(pipeline, "late"), b'{"prompt": "hi", "deadline": 0.3}')
        assert await eventually(lambda: ended(producer, pipeline, "late")) == "expired"
        assert (await producer.result(pipeline, "first")).state is RequestState.OPEN


async def _known(producer: Producer, pipeline: str, rid: str):
    try:
        return await producer.result(pipeline, rid)
    except UnknownRequest:
        return None


async def test_submit_exits_with_4_in_time_when_no_orchestrator_is_there(connection: Connection, pipeline: str) -> None:
    spec = line(pipeline)
    async with serving(connection, spec, orchestrators=0, replicas=0):
        await deploy_pipeline(connection, spec)
        words = ("submit", "hi", "--pipeline", pipeline, "--deadline", "0.1")
        done = await asyncio.to_thread(omnibus, *words, nats=connection.url, timeout=20.0)
    assert done.returncode == 4, done.stderr
    assert "no orchestrator" in done.stderr
