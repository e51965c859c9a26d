"""Flows of several requests that compete for slots, when the processes of some are drained in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.client.producer import Producer
from omnibus.flows import pacing, reader
from omnibus.orchestrator.service import OrchestratorService
from omnibus.pipeline.route import EdgeMode
from omnibus.pipeline.spec import EdgeSpec, PipelineSpec, StageSpec
from omnibus.requests.state import RequestState
from omnibus.wire.request import Request
from omnibus.workers.replica import Replica, ReplicaOptions
from tests.support import flow_stages
from tests.support.flow import serving
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.integration
WORDS = 60


@pytest.fixture(autouse=True)
def small_window(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pacing, "WINDOW", 1500)
    monkeypatch.setattr(pacing, "LOOK_EVERY", 0.3)
    monkeypatch.setattr(reader, "REPORT_EVERY", 1)
    flow_stages.reset()
    yield
    flow_stages.reset()


@asynccontextmanager
async def running(replica: Replica) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(replica.run())
    try:
        yield task
    finally:
        replica.drain()
        await asyncio.wait({task}, timeout=10)
        task.cancel()
        await asyncio.wait({task})


def spec_of(pipeline: str) -> PipelineSpec:
    writer = StageSpec(
        stage_id=0, name="writer", engine="python", model="tests.support.flow_stages:write", slots=1,
        engine_args={"outputs": {"word": "json"}},
    )  # fmt: skip
    listener = StageSpec(
        stage_id=1, name="reader1", engine="python", model="tests.support.flow_stages:shout_words", slots=1,
        input_sources=(0,), engine_args={"outputs": {"text": "text"}}, final_output=True, final_output_type="text",
    )  # fmt: skip
    edge = EdgeSpec(source=0, target=1, mode=EdgeMode.STREAM)
    return PipelineSpec(name=pipeline, deadline=60.0, heartbeat_timeout=1.0, stages=(writer, listener), edges=(edge,))


@pytest.mark.parametrize("drained", [0, 1])
async def test_all_requests_end_when_the_writer_of_one_and_the_reader_of_another_are_drained(
    connection: Connection, pipeline: str, drained: int
) -> None:
    """What stays has one slot a stage: held up by a reader that is gone, the writer would wait for it, and it for the writer."""
    spec = spec_of(pipeline)
    await ensure_layout(connection, layout_of(spec))
    made = [[Replica(connection, spec, stage, ReplicaOptions(grace=0.1)) for _ in range(2)] for stage in spec.stages]
    async with AsyncExitStack() as stack:
        tasks = [[await stack.enter_async_context(running(one)) for one in stage] for stage in made]
        orchestrator = asyncio.create_task(OrchestratorService(connection, spec).run())
        stack.callback(orchestrator.cancel)
        producer = await stack.enter_async_context(Producer(connection))
        await eventually(lambda: all(one.record.status == "up" for stage in made for one in stage), 20)
        prompts = [" ".join(["step", name, *["x" * 100] * WORDS]) for name in ("a", "b")]
        results = [
            asyncio.create_task((await producer.submit(spec, Request(prompt=prompt))).result()) for prompt in prompts
        ]
        for prompt in prompts:
            flow_stages.steps[prompt].release(3)
        await eventually(lambda: all(len(flow_stages.read[prompt]) >= 3 for prompt in prompts), 20)
        made[0][0].drain()
        made[1][drained].drain()
        await asyncio.wait_for(asyncio.gather(tasks[0][0], tasks[1][drained]), 20)
        for prompt in prompts:
            flow_stages.steps[prompt].release(10 * WORDS)
        ended = await asyncio.gather(*results)
    assert [result.state for result in ended] == [RequestState.DONE] * 2, [result.failure for result in ended]
    assert [result.outputs[0].text.strip() for result in ended] == [prompt.upper() for prompt in prompts]


async def test_slot_of_a_reader_is_free_when_the_request_has_another_run(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer of the first run is gone for good, and the reader's slot is the stage's only one."""
    monkeypatch.setattr(reader, "LOOK_EVERY", 0.1)
    spec, prompt = spec_of(pipeline), "step by lost step"
    async with serving(connection, spec) as producer:
        submission = await producer.submit(spec, Request(prompt=prompt))
        flow_stages.steps[prompt].release(2)
        await eventually(lambda: flow_stages.read[prompt] == ["step", "by"], 20)
        flow_stages.steps[prompt].release(10)
        result = await asyncio.wait_for(submission.result(), 40)
    assert (result.state, result.run) == (RequestState.DONE, 2)
    assert result.outputs[0].text.strip() == prompt.upper()
