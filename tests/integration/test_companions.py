"""Bundles on a real broker: one task, one replica, one fate, and outputs that reach the next stages by role."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.client.producer import Producer
from omnibus.client.request_events import OutputArrived, Result, TextPiece
from omnibus.pipeline.route import EdgeMode, Forwarding
from omnibus.pipeline.spec import EdgeSpec, PayloadRule, PipelineSpec, StageSpec
from omnibus.requests.state import RequestState
from omnibus.wire import codec, subjects
from omnibus.wire.control import Cancel
from omnibus.wire.envelope import AttemptFailed
from omnibus.wire.request import Request
from omnibus.workers.engines.protocol import MOST_MEMBERS
from tests.support.companion_stages import prompt_of
from tests.support.flow import serving, sim
from tests.support.stage_bench import StageBench, stage_bench, up
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
STAGES = "tests.support.companion_stages"
EXPAND = f"{STAGES}:expand"


def pair(name: str, **edge: Any) -> PipelineSpec:
    """A stage with bundles, and one that says what it was given."""
    told = StageSpec(
        stage_id=1, name="told", engine="python", model=f"{STAGES}:told", input_sources=(0,), final_output=True,
        final_output_type="text", slots=4,
    )  # fmt: skip
    return PipelineSpec(
        name=name, stages=(replace(sim(0, final="text"), prompt_expand=EXPAND), told),
        edges=(EdgeSpec(source=0, target=1, **edge),), deadline=30.0,
    )  # fmt: skip


async def answer(producer: Producer, spec: PipelineSpec, prompt: str) -> Result:
    result = await (await producer.submit(spec, Request(prompt=prompt))).result()
    assert result.state is RequestState.DONE, result.failure
    return result


@pytest.mark.parametrize(
    "edge", [{}, {"forwarding": Forwarding.DIRECT}, {"payload": PayloadRule.OBJECT}], ids=["events", "direct", "stored"]
)
async def test_outputs_reach_the_next_stage_by_role_when_a_prompt_is_expanded(
    connection: Connection, pipeline: str, edge: dict[str, Any]
) -> None:
    spec = pair(pipeline, **edge)
    async with serving(connection, spec) as producer:
        bundle = await answer(producer, spec, prompt_of("a red circle", "blue", "no sound"))
        single = await answer(producer, spec, "a red circle")
    text, told = bundle.outputs
    assert (text.text, text.usage.prompt_tokens, text.usage.completion_tokens) == ("a red circle", 6, 6)
    companions = {"s0": {"negative": {"text": "blue"}, "third": {"text": "no sound"}}}
    assert json.loads(told.text or "") == [{"s0": {"text": "a red circle"}}, companions]
    text, told = single.outputs
    assert (text.text, text.usage.prompt_tokens) == ("a red circle", 3)
    assert json.loads(told.text or "") == [{"s0": {"text": "a red circle"}}, {}]


async def test_outputs_reach_a_join_by_stage_and_role(connection: Connection, pipeline: str) -> None:
    told = replace(pair(pipeline).stages[1], stage_id=2, input_sources=(0, 1))
    bundled = [replace(sim(number), prompt_expand=EXPAND) for number in (0, 1)]
    spec = PipelineSpec(name=pipeline, stages=(*bundled, told), deadline=30.0)
    async with serving(connection, spec) as producer:
        result = await answer(producer, spec, prompt_of("red", "blue"))
    sources, companions = json.loads(result.outputs[0].text or "")
    assert sources == {"s0": {"text": "red"}, "s1": {"text": "red"}}
    assert companions == {name: {"negative": {"text": "blue"}} for name in ("s0", "s1")}


async def test_main_text_streams_to_one_stage_while_another_gets_the_companions_in_the_end(
    connection: Connection, pipeline: str
) -> None:
    spec = pair(pipeline)
    overheard = replace(spec.stages[1], stage_id=2, name="overheard", model=f"{STAGES}:overheard")
    edges = (*spec.edges, EdgeSpec(source=0, target=2, mode=EdgeMode.STREAM))
    spec = replace(spec, stages=(*spec.stages, overheard), edges=edges)
    async with serving(connection, spec) as producer:
        result = await answer(producer, spec, prompt_of("a b c", "p q r s t", main={"token_rate": 50}))
    text, told, heard = result.outputs
    assert json.loads(told.text or "")[1] == {"s0": {"negative": {"text": "p q r s t"}}}
    assert json.loads(heard.text or "") == ["s0", text.text, {}]


async def test_caller_is_sent_the_main_text_alone(connection: Connection, pipeline: str) -> None:
    stage = replace(sim(0, final="text", token_rate=50), prompt_expand=EXPAND)
    spec = PipelineSpec(name=pipeline, stages=(stage,), deadline=30.0)
    async with serving(connection, spec) as producer:
        submission = await producer.submit(spec, Request(prompt=prompt_of("a b c d", "p q r s t u v w")))
        events = [event async for event in submission.events()]
    assert "".join(event.text for event in events if isinstance(event, TextPiece)) == "a b c d"
    assert [event.output.text for event in events if isinstance(event, OutputArrived)] == ["a b c d"]


async def test_plain_functions_of_a_bundle_run_at_once_when_the_stage_has_one_slot(
    connection: Connection, pipeline: str
) -> None:
    """The bundle has one slot, and returns only if all of its three members run together."""
    async with (
        stage_bench(
            connection, pipeline, engine="python", model=f"{STAGES}:meet", prompt_expand=EXPAND, slots=1,
            heartbeat_timeout=20.0,
        ) as bench,
        bench.replica(),
    ):  # fmt: skip
        await bench.submit("a", prompt_of("x", "y", "z"))
        result = await bench.result("a", 20)
        await bench.all_done()
    assert result.final is not None
    assert result.final.items[0].data == b"main x"


async def test_bundle_is_refused_with_its_size_when_it_has_too_many_members(
    connection: Connection, pipeline: str
) -> None:
    async with stage_bench(connection, pipeline, prompt_expand=EXPAND) as bench, bench.replica():
        await bench.submit("a", "|".join("x" * (MOST_MEMBERS + 1)))
        failed = await bench.failure("a")
        await bench.all_done()
    assert (failed.failure.code, failed.failure.http_status, failed.dead) == ("request_too_large", 413, False)
    assert f"expands to {MOST_MEMBERS + 1} members" in failed.failure.message


# One fate


def bundle(**arguments: dict[str, Any]) -> str:
    return prompt_of("red circle", "blue", **arguments)


async def test_request_is_refused_once_when_a_companion_is(connection: Connection, pipeline: str) -> None:
    reject = {"reject_on": {"rid": "."}}
    async with stage_bench(connection, pipeline, prompt_expand=EXPAND) as bench, bench.replica() as replica:
        await bench.submit("a", bundle(main={"hang_on": {"rid": "."}}, negative=reject))
        failed = await bench.failure("a")
        await bench.all_done()
        assert replica._engine.stats().running == 0, "the main member was stopped"
        assert bench.published["a"] == 1
    assert (failed.failure.code, failed.failure.http_status) == ("engine_rejected", 400)
    assert "companion 'negative'" in failed.failure.message


@pytest.mark.parametrize("role", ["main", "negative"])
async def test_bundle_is_tried_again_as_one_when_a_member_fails(
    connection: Connection, pipeline: str, role: str
) -> None:
    async with stage_bench(connection, pipeline, prompt_expand=EXPAND) as bench, bench.replica() as replica:
        await bench.submit("a", bundle(**{role: {"fail_on": {"attempts": [1, 2]}}}))
        result = await bench.result("a")
        await bench.all_done()
        assert len(bench.attempts["a"]) == 2
        assert bench.published["a"] == 1
        assert replica._engine.stats().running == 0
    assert result.final is not None
    assert result.final.items[0].data == b"red circle"


async def test_request_ends_dead_once_when_a_companion_fails_every_time(connection: Connection, pipeline: str) -> None:
    failing = {"fail_on": {"rid": "."}}
    async with stage_bench(connection, pipeline, prompt_expand=EXPAND, max_attempts=2) as bench, bench.replica():
        await bench.submit("a", bundle(negative=failing))
        failed = await bench.failure("a")
        await bench.all_done()
        assert bench.published["a"] == 1
    assert failed.dead
    assert (failed.failure.code, failed.failure.attempts) == ("engine_error", 2)


@pytest.mark.parametrize("hanging", [("main",), ("negative",), ("main", "negative")])
async def test_every_member_is_stopped_and_the_slot_free_when_the_request_is_cancelled(
    connection: Connection, pipeline: str, hanging: tuple[str, ...]
) -> None:
    hang = {"hang_on": {"rid": "."}}
    async with stage_bench(connection, pipeline, prompt_expand=EXPAND, slots=1) as bench, bench.replica() as replica:
        await bench.submit("a", bundle(**dict.fromkeys(hanging, hang)))
        await eventually(lambda: replica._engine.stats().running == len(hanging))
        order = Cancel(rids=("a",), until=2**40)
        await bench.conn.publish(subjects.ctl_all(bench.spec.name), codec.encode(order))
        await bench.all_done()
        await bench.submit("b", bundle())
        await bench.result("b")
        assert replica._engine.stats().running == 0
        assert bench.published["a"] == 0


async def test_bundle_ends_with_a_timeout_when_a_companion_hangs(connection: Connection, pipeline: str) -> None:
    hang = {"hang_on": {"rid": "."}}
    async with (
        stage_bench(connection, pipeline, prompt_expand=EXPAND, timeout=2.0, slots=1, heartbeat_timeout=10.0) as bench,
        bench.replica() as replica,
    ):
        await bench.submit("a", bundle(negative=hang))
        failed = await bench.failure("a")
        await bench.submit("b", bundle())
        await bench.result("b")
        await bench.all_done()
        assert bench.published["a"] == 1
        assert replica._engine.stats().running == 0
    assert (failed.failure.code, failed.failure.http_status) == ("stage_timeout", 504)


async def test_request_expires_when_a_companion_hangs_until_the_deadline(connection: Connection, pipeline: str) -> None:
    spec = PipelineSpec(name=pipeline, stages=(replace(sim(0, final="text"), prompt_expand=EXPAND),))
    async with serving(connection, spec) as producer:
        request = Request(prompt=bundle(negative={"hang_on": {"rid": "."}}), deadline=1.0)
        result = await (await producer.submit(spec, request)).result()
        await answer(producer, spec, bundle())
    assert result.state is RequestState.EXPIRED


async def test_replica_is_down_and_the_bundle_runs_elsewhere_when_a_companion_stalls(
    connection: Connection, pipeline: str
) -> None:
    stall = {"stall_on": {"attempts": [1]}}
    async with stage_bench(connection, pipeline, prompt_expand=EXPAND, max_attempts=2, heartbeat_timeout=20.0) as bench:
        async with up(bench, replace(bench.stage, stall_timeout=1.0)) as (stuck, running):
            await bench.submit("a", bundle(negative=stall))
            await eventually(lambda: len(stuck._claims) == 1)
            async with up(bench, bench.stage):
                result = await bench.result("a", 30)
                assert result.replica != stuck.record.replica
            await eventually(running.done, 20)
        assert stuck.record.reason == "stage 'sim': no progress for 1 s"
        (news,) = bench.attempts["a"]
        assert isinstance(news, AttemptFailed)
        assert (news.attempt.code, news.attempt.delivery) == ("engine_stalled", 1)
        assert bench.published["a"] == 1
        await bench.all_done()


async def test_bundle_is_run_once_more_elsewhere_when_its_replica_is_killed(
    connection: Connection, pipeline: str
) -> None:
    """A companion takes the process with it in the middle of the bundle."""
    crash = {"latency": 0.3, "crash_on": {"attempts": [1]}}
    async with stage_bench(connection, pipeline, prompt_expand=EXPAND) as bench:
        async with bench.process("dies") as process:
            await bench.submit("a", bundle(main={"latency": 5.0}, negative=crash))
            await asyncio.wait_for(process.wait(), 30)
        async with bench.replica():
            await finished_again(bench)


async def test_bundle_is_run_once_more_when_its_replica_leaves_without_a_word(
    connection: Connection, pipeline: str
) -> None:
    hang = {"hang_on": {"attempts": [1]}}
    async with stage_bench(connection, pipeline, prompt_expand=EXPAND) as bench:
        async with bench.replica(stop=False) as replica:
            await bench.submit("a", bundle(main=hang, negative=hang))
            await eventually(lambda: replica._engine.stats().running == 2)
        async with bench.replica():
            await finished_again(bench)


async def finished_again(bench: StageBench) -> None:
    """The bundle's one result, of its second delivery."""
    result = await bench.result("a", 20)
    await bench.all_done()
    assert result.final is not None
    assert result.final.items[0].data == b"red circle"
    assert bench.published["a"] == 1
