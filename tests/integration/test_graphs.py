"""Graphs of stages: joins that outlive an orchestrator, typed inputs, parameters a stage, failures that stay where they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.client.producer import Producer
from omnibus.client.request_events import Result
from omnibus.ledger.records import Ledger
from omnibus.orchestrator.service import OrchestratorService
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.state import RequestState
from omnibus.wire.request import Request
from omnibus.workers.engines.protocol import Item, Job
from omnibus.workers.engines.sim import SimEngine
from tests.support.flow import serving, sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
STAGES = "tests.support.graph_stages"


async def test_partial_arrivals_of_a_join_survive_the_death_of_their_orchestrator(
    connection: Connection, pipeline: str
) -> None:
    join = replace(sim(2, 0, 1, final="text"), input_processor=f"{STAGES}:join_texts")
    spec = PipelineSpec(name=pipeline, stages=(sim(0), sim(1, latency=1.0), join), deadline=20.0)
    async with serving(connection, spec, orchestrators=0) as producer:
        first = asyncio.create_task(OrchestratorService(connection, spec).run())
        submission = await producer.submit(spec, Request(prompt="hi"))

        async def half_arrived() -> bool:
            entry = await Ledger(connection, pipeline).read(submission.rid)
            return entry is not None and set(entry.record.arrived) == {0}

        await eventually(half_arrived, what="one of two sources")
        first.cancel()
        await asyncio.wait({first})
        second = asyncio.create_task(OrchestratorService(connection, spec).run())
        result = await submission.result()
        second.cancel()
        await asyncio.wait({second})
    assert result.state is RequestState.DONE
    assert result.outputs[0].text == "s0=hi s1=hi", "the processor had both sources by name"


async def test_every_stage_has_its_own_sampling_parameters(connection: Connection, pipeline: str) -> None:
    first = replace(sim(0, final="text"), default_sampling_params={"tokens": 2})
    second = replace(sim(1, 0, final="text"), default_sampling_params={"tokens": 5})
    spec = PipelineSpec(name=pipeline, stages=(first, second))
    arguments = {"s0": {"tokens": 3}, "1": {"tokens": 7}}
    async with serving(connection, spec) as producer:
        default = await (await producer.submit(spec, Request(prompt="a"))).result()
        asked = await (await producer.submit(spec, Request(prompt="a", sampling_params=arguments))).result()
    assert [len(output.text.split()) for output in default.outputs] == [2, 5]
    assert [len(output.text.split()) for output in asked.outputs] == [3, 7]


async def test_exception_while_an_input_is_prepared_fails_that_request_only(
    connection: Connection, pipeline: str
) -> None:
    stage = replace(sim(0, final="text", latency=0.3), input_processor=f"{STAGES}:break_on_poison")
    spec = PipelineSpec(name=pipeline, stages=(stage,), max_attempts=2)
    async with serving(connection, spec) as producer:
        prompts = ["one", "poison", "two"]
        submissions = [await producer.submit(spec, Request(prompt=prompt)) for prompt in prompts]
        results = await asyncio.gather(*(submission.result() for submission in submissions))
    assert [result.state for result in results] == [RequestState.DONE, RequestState.FAILED, RequestState.DONE]
    failure = results[1].failure
    assert failure is not None
    assert (failure.stage_id, failure.replica, failure.attempts) == (0, "r0", 2)
    assert "ZeroDivisionError" in failure.message


async def test_refusal_of_an_engine_keeps_its_status_and_names_its_stage(connection: Connection, pipeline: str) -> None:
    spec = PipelineSpec(name=pipeline, stages=(sim(0), sim(1, 0, final="text", reject_on={"rid": "."})))
    async with serving(connection, spec) as producer:
        result = await (await producer.submit(spec, Request(prompt="hi"))).result()
    assert result.failure is not None
    assert (result.failure.http_status, result.failure.stage_id) == (400, 1)


async def test_trace_headers_and_priority_reach_every_stage(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known defect elsewhere: both are dropped on the way to an engine; so it is the engines' jobs that are looked at."""
    jobs: list[Job] = []
    generate = SimEngine.generate

    def spy(engine: SimEngine, job: Job) -> AsyncIterator[Item]:
        jobs.append(job)
        return generate(engine, job)

    monkeypatch.setattr(SimEngine, "generate", spy)
    lanes = ("interactive", "batch")
    spec = PipelineSpec(name=pipeline, lanes=lanes, stages=(sim(0), sim(1, 0, final="text")))
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    async with serving(connection, spec) as producer:
        await (await producer.submit(spec, Request(prompt="hi", trace=trace, priority=3, lane="batch"))).result()
    assert [sorted(job.stage_input.sources) for job in jobs] == [[], ["s0"]]
    assert [(job.trace, job.priority) for job in jobs] == [(trace, 3)] * 2


async def test_times_and_bytes_of_every_stage_are_in_the_result(connection: Connection, pipeline: str) -> None:
    spec = PipelineSpec(name=pipeline, stages=(sim(0, latency=0.05), sim(1, 0, final="text", latency=0.1)))
    async with serving(connection, spec) as producer:
        result = await _result(producer, spec)
    first, second = result.timings
    assert first.finished - first.started >= 0.05
    assert second.finished - second.started >= 0.1
    assert first.queued <= first.started <= first.finished <= second.started
    assert (first.bytes_in, first.bytes_out, second.bytes_in) == (0, len("hi there"), len("hi there"))


async def _result(producer: Producer, spec: PipelineSpec) -> Result:
    return await (await producer.submit(spec, Request(prompt="hi there"))).result()
