"""Stages that read each other while they run: in time, whole, and with one end whatever fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from omnibus.broker.connection import Connection
from omnibus.client.producer import Producer
from omnibus.client.request_events import Result
from omnibus.pipeline.route import EdgeMode, Forwarding
from omnibus.pipeline.spec import EdgeSpec, PipelineSpec, StageSpec
from omnibus.requests.state import RequestState
from omnibus.wire import stores
from omnibus.wire.request import Request
from tests.support import flow_stages
from tests.support.flow import serving
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
LONG = 30.0


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    flow_stages.reset()
    yield
    flow_stages.reset()


def stage(number: int, function: str, *sources: int, outputs: dict[str, str], **fields: Any) -> StageSpec:
    return StageSpec(
        stage_id=number, name="writer" if not number else f"reader{number}", engine="python",
        model=f"tests.support.flow_stages:{function}", input_sources=sources, slots=4,
        engine_args={"outputs": outputs}, **fields,
    )  # fmt: skip


def pipeline_of(
    name: str, reader: str = "shout_words", writer: str = "write", mode: EdgeMode = EdgeMode.STREAM, **fields: Any
) -> PipelineSpec:
    outputs = {"text": "text"} if writer == "say" else {"word": "json"}
    return PipelineSpec(
        name=name, deadline=fields.pop("deadline", LONG), heartbeat_timeout=1.0,
        max_flow_bytes=fields.pop("max_flow_bytes", 1 << 30),
        stages=(
            stage(0, writer, outputs=outputs),
            stage(1, reader, 0, outputs={"text": "text"}, final_output=True, final_output_type="text", **fields),
        ),
        edges=(EdgeSpec(source=0, target=1, mode=mode),),
    )  # fmt: skip


async def asked(producer: Producer, spec: PipelineSpec, prompt: str) -> Result:
    return await (await producer.submit(spec, Request(prompt=prompt))).result()


async def flows_left(connection: Connection, spec: PipelineSpec) -> int:
    info = await connection.api(f"STREAM.INFO.{stores.chunks_stream(spec.name)}")
    return int(info["state"]["messages"])


async def nothing_stays(connection: Connection, spec: PipelineSpec) -> None:
    async def is_empty() -> bool:
        return await flows_left(connection, spec) == 0

    await eventually(is_empty, LONG, what="no chunk stays")


@pytest.mark.parametrize("reader", ["shout_words", "shout_plainly"])
@pytest.mark.parametrize("forwarding", list(Forwarding))
async def test_reader_begins_while_its_source_still_writes(
    connection: Connection, pipeline: str, reader: str, forwarding: Forwarding
) -> None:
    spec, prompt = pipeline_of(pipeline, reader), "step one two three"
    edges = (EdgeSpec(source=0, target=1, mode=EdgeMode.STREAM, forwarding=forwarding),)
    spec = PipelineSpec(**{field: getattr(spec, field) for field in spec.__struct_fields__} | {"edges": edges})
    async with serving(connection, spec) as producer:
        waiting = asyncio.create_task(asked(producer, spec, prompt))
        for count in range(1, 4):
            flow_stages.steps[prompt].release()
            await eventually(lambda count=count: len(flow_stages.read[prompt]) == count, LONG)
        assert not waiting.done()
        flow_stages.steps[prompt].release()
        result = await waiting
        assert (result.state, result.outputs[0].text) == (RequestState.DONE, "STEP ONE TWO THREE ")
        assert [timing.stage_id for timing in result.timings] == [0, 1]
        assert result.timings[0].flowed == 5, "four chunks and the end"
        assert result.timings[0].finished > result.timings[1].started, "both ran at the same time"
        await nothing_stays(connection, spec)


@pytest.mark.parametrize("reader", ["shout_impatiently", "shout_impatiently_elsewhere"])
async def test_reader_has_every_chunk_when_it_gives_up_waiting_for_some(
    connection: Connection, pipeline: str, reader: str
) -> None:
    prompt = " ".join(["step", *(f"w{number}" for number in range(40))])
    flow_stages.steps[prompt].release()  # for the first word, with which the reader begins
    async with serving(connection, spec := pipeline_of(pipeline, reader)) as producer:
        result = await asked(producer, spec, prompt)
    assert result.outputs[0].text == prompt.upper(), result.failure
    assert flow_stages.attempts["gave up", prompt] > 10


async def test_task_of_the_reader_is_not_there_before_the_first_chunk(connection: Connection, pipeline: str) -> None:
    spec, prompt = pipeline_of(pipeline), "step"
    async with serving(connection, spec) as producer:
        waiting = asyncio.create_task(asked(producer, spec, prompt))
        await eventually(lambda: flow_stages.attempts["write", prompt] == 1, LONG)
        assert flow_stages.attempts["shout", prompt] == 0, "no slot waits for nothing"
        flow_stages.steps[prompt].release()
        assert (await waiting).outputs[0].text == "STEP "


@pytest.mark.parametrize(("mode", "given"), [(EdgeMode.WHOLE, "sources ['writer']"), (EdgeMode.STREAM, "sources []")])
async def test_reader_gets_what_its_edge_says(
    connection: Connection, pipeline: str, mode: EdgeMode, given: str
) -> None:
    spec = pipeline_of(pipeline, "whole_or_flow", mode=mode)
    async with serving(connection, spec) as producer:
        result = await asked(producer, spec, "a b")
        assert given in result.outputs[0].text, result.failure


async def test_text_of_a_stage_is_chunks_by_itself(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline, writer="say")
    async with serving(connection, spec) as producer:
        assert (await asked(producer, spec, "a b c")).outputs[0].text == "A  B  C  "


async def test_engine_reads_parts_that_an_input_processor_yields(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline, "take_parts", input_processor="tests.support.flow_stages:parts_of")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_stages, "take_parts", _take_nothing, raising=False)
        async with serving(connection, spec) as producer:
            result = await asked(producer, spec, "a b")
    assert (result.state, result.outputs[0].text) == (RequestState.DONE, "nothing taken"), "it need not take them"


async def _take_nothing(_stage_input: object) -> str:
    return "nothing taken"


async def test_request_ends_once_all_is_written_when_its_reader_leaves_the_rest(
    connection: Connection, pipeline: str
) -> None:
    spec, prompt = pipeline_of(pipeline, "first_word"), "step b c"
    async with serving(connection, spec) as producer:
        waiting = asyncio.create_task(asked(producer, spec, prompt))
        for _ in range(2):
            flow_stages.steps[prompt].release()
        await asyncio.wait({waiting}, timeout=0.3)
        assert not waiting.done(), "its source still runs"
        flow_stages.steps[prompt].release()
        result = await waiting
        assert (result.outputs[0].text, len(result.timings)) == ("step", 2)
        await nothing_stays(connection, spec)


async def test_failed_source_ends_the_request_under_its_name(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline)
    async with serving(connection, spec) as producer:
        result = await asked(producer, spec, "a fails-always restart")
        assert result.state is RequestState.FAILED
        assert result.failure is not None
        assert (result.failure.stage_id, "word 1" in result.failure.message) == (0, True)
        await nothing_stays(connection, spec)
        await eventually(lambda: "b" not in flow_stages.read, LONG)
        assert (await asked(producer, spec, "next")).outputs[0].text == "NEXT ", "no slot is held"


async def test_failed_reader_ends_the_request_under_its_name_and_stops_its_source(
    connection: Connection, pipeline: str
) -> None:
    spec, prompt = pipeline_of(pipeline), "step never more"
    async with serving(connection, spec) as producer:
        waiting = asyncio.create_task(asked(producer, spec, prompt))
        for _ in range(2):
            flow_stages.steps[prompt].release()
        result = await waiting
        assert result.failure is not None
        assert (result.state, result.failure.stage_id) == (RequestState.FAILED, 1)
        await nothing_stays(connection, spec)


async def test_reader_that_failed_reads_the_flow_from_its_beginning(connection: Connection, pipeline: str) -> None:
    spec, prompt = pipeline_of(pipeline), "a stumble b"
    async with serving(connection, spec) as producer:
        result = await asked(producer, spec, prompt)
        assert result.outputs[0].text == "A STUMBLE B "
        assert flow_stages.read[prompt] == ["a", "stumble", "a", "stumble", "b"]
        assert flow_stages.attempts["write", prompt] == 1


async def test_reader_begins_again_when_its_source_does(connection: Connection, pipeline: str) -> None:
    spec, prompt = pipeline_of(pipeline), "step fails-once restart"
    async with serving(connection, spec) as producer:
        waiting = asyncio.create_task(asked(producer, spec, prompt))
        flow_stages.steps[prompt].release()
        await eventually(lambda: flow_stages.read[prompt] == ["step/1"], LONG)
        for _ in range(9):
            flow_stages.steps[prompt].release()
        result = await waiting
        assert result.outputs[0].text == "STEP/2 FAILS-ONCE/2 RESTART/2 "
        assert flow_stages.attempts["write", prompt] == 2
        await nothing_stays(connection, spec)


@pytest.mark.parametrize(("prompt", "times"), [("a b breaks c", 1), ("a varies breaks c", 2)])
async def test_text_goes_on_behind_what_is_there_unless_it_is_another(
    connection: Connection, pipeline: str, prompt: str, times: int
) -> None:
    spec = pipeline_of(pipeline, writer="say")
    async with serving(connection, spec) as producer:
        result = await asked(producer, spec, prompt)
        words = prompt.replace("varies", "varies-other").upper().split()
        assert result.outputs[0].text.split() == words
        assert flow_stages.attempts["say", prompt] == 2
        assert flow_stages.attempts["shout", prompt] == times


@pytest.mark.parametrize("reader", ["shout_words", "shout_plainly"])
async def test_both_sides_are_free_and_nothing_stays_when_the_request_is_cancelled(
    connection: Connection, pipeline: str, reader: str
) -> None:
    spec, prompt = pipeline_of(pipeline, reader), "step b c"
    async with serving(connection, spec) as producer:
        submission = await producer.submit(spec, Request(prompt=prompt))
        flow_stages.steps[prompt].release()
        await eventually(lambda: flow_stages.read[prompt] == ["step"], LONG)
        await producer.cancel(spec.name, submission.rid)
        await nothing_stays(connection, spec)
        if reader == "shout_plainly":
            await eventually(lambda: prompt in flow_stages.closed, LONG, what="its thread is free")
        results = await asyncio.gather(*(asked(producer, spec, f"n{number}") for number in range(8)))
        assert {result.state for result in results} == {RequestState.DONE}


async def test_waiting_for_a_source_is_no_stall(connection: Connection, pipeline: str) -> None:
    spec, prompt = pipeline_of(pipeline, stall_timeout=0.3), "step b"
    async with serving(connection, spec) as producer:
        waiting = asyncio.create_task(asked(producer, spec, prompt))
        flow_stages.steps[prompt].release()
        await eventually(lambda: flow_stages.read[prompt] == ["step"], LONG)
        await asyncio.wait({waiting}, timeout=1.0)
        flow_stages.steps[prompt].release()
        result = await waiting
        assert (result.state, result.outputs[0].text) == (RequestState.DONE, "STEP B ")
        assert flow_stages.attempts["shout", prompt] == 1


async def test_flow_beyond_its_bound_fails_the_request_with_the_stage(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline, max_flow_bytes=100)
    async with serving(connection, spec) as producer:
        result = await asked(producer, spec, " ".join(["x" * 30] * 9))
        assert result.failure is not None
        assert (result.failure.code, result.failure.stage_id) == ("flow_too_large", 0)


async def test_many_tiny_chunks_reach_the_bound_of_a_flow(connection: Connection, pipeline: str) -> None:
    """Their bytes alone would not: what holds them in memory counts."""
    spec = pipeline_of(pipeline, max_flow_bytes=64 << 10)
    async with serving(connection, spec) as producer:
        few, many = await asked(producer, spec, "x " * 20), await asked(producer, spec, "x " * 400)
        assert few.state is RequestState.DONE, few.failure
        assert many.failure is not None
        assert (many.failure.code, many.failure.stage_id) == ("flow_too_large", 0)


async def test_run_begins_again_when_a_chunk_is_lost(connection: Connection, pipeline: str) -> None:
    spec, prompt = pipeline_of(pipeline), "step b c"
    async with serving(connection, spec) as producer:
        waiting = asyncio.create_task(asked(producer, spec, prompt))
        flow_stages.steps[prompt].release()
        await eventually(lambda: flow_stages.read[prompt] == ["step"], LONG)
        await connection.api(f"STREAM.PURGE.{stores.chunks_stream(spec.name)}", {})
        for _ in range(9):
            flow_stages.steps[prompt].release()
        result = await waiting
        assert (result.state, result.run, result.outputs[0].text) == (RequestState.DONE, 2, "STEP B C ")
