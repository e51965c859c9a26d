"""Orders to a replica: pause, resume, sleep, wake up. Nothing is lost by them."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from omnibus.broker.connection import Connection
from omnibus.client.controls import Controls
from omnibus.client.rpc import CollectiveAnswer, collective_rpc
from omnibus.errors import EngineError, InvalidRequest
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.presence.replica_record import ReplicaStatus
from omnibus.wire.request import Request
from tests.support.flow import line, serving, sim
from tests.support.stage_bench import stage_bench
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


def callable_stage(
    stage_id: int = 0, *, model: str = "tests.support.callable_stage:Callable", **fields: Any
) -> StageSpec:
    return StageSpec(
        stage_id=stage_id, name=f"s{stage_id}", engine="python", model=model, slots=2,
        final_output=True, final_output_type="text", **fields,
    )  # fmt: skip


async def test_paused_replica_takes_nothing_until_it_is_resumed(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, slots=2) as bench, bench.replica() as replica:
        controls = Controls(connection, bench.spec)
        await controls.pause_generation()
        assert await controls.is_paused()
        assert replica.record.status is ReplicaStatus.DRAINING, "nobody directs tasks to it"
        for rid in ("a", "b", "c"):
            await bench.submit(rid)
        with pytest.raises(AssertionError):
            await bench.event("a", timeout=0.3)
        await controls.resume_generation()
        for rid in ("a", "b", "c"):
            await bench.result(rid)
        assert replica.record.status is ReplicaStatus.UP
        assert not await controls.is_paused()


async def test_tasks_in_hand_are_finished_when_a_pause_waits(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, latency=0.3) as bench, bench.replica() as replica:
        await bench.submit("a")
        await eventually(lambda: replica._claims.held)
        await Controls(connection, bench.spec).pause_generation("wait")
        assert not replica._claims.held
        await bench.result("a")


async def test_tasks_in_hand_run_elsewhere_when_a_pause_aborts(connection: Connection, pipeline: str) -> None:
    async with (
        stage_bench(connection, pipeline, hang_on={"attempts": [1]}, token_rate=0) as bench,
        bench.replica() as first,
    ):
        await bench.submit("a")
        await eventually(lambda: first._claims.held)
        async with asyncio.timeout(5):
            await Controls(connection, bench.spec).pause_generation("abort")
        assert await bench.queued() == 1, "it is back in the queue"
        assert not first._claims.held


async def test_every_slot_is_filled_again_after_many_pauses(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, slots=2, latency=0.1) as bench, bench.replica() as replica:
        controls = Controls(connection, bench.spec)
        for number in range(4):
            await bench.submit(f"a{number}")
            await controls.pause_generation("wait" if number % 2 else "abort")
            await controls.resume_generation()
        for number in range(4):
            await bench.submit(f"b{number}")
        await eventually(lambda: len(replica._claims) == 2, what="both slots are busy")
        for number in range(4):
            await bench.result(f"a{number}")
            await bench.result(f"b{number}")
        assert replica._slots._puller is not None
        await eventually(lambda: replica._slots._puller._credit == 2)


@pytest.mark.parametrize("mode", ["keep", "", 7])
async def test_pause_is_refused_when_nothing_here_can_do_it(connection: Connection, pipeline: str, mode: Any) -> None:
    async with stage_bench(connection, pipeline) as bench, bench.replica():
        with pytest.raises(InvalidRequest):
            await Controls(connection, bench.spec).pause_generation(mode)


async def test_replica_sleeps_and_works_again_when_it_is_woken(connection: Connection, pipeline: str) -> None:
    spec = PipelineSpec(name=pipeline, heartbeat_timeout=1.0, stages=(callable_stage(),))
    async with serving(connection, spec) as producer:
        controls = Controls(connection, spec)
        await controls.sleep()
        await controls.sleep()
        assert await controls.is_sleeping()
        assert list(await controls.collective_rpc("naps")) == [True]
        with pytest.raises(InvalidRequest, match="asleep"):
            await controls.resume_generation()
        waiting = await producer.submit(spec, Request(prompt="x"))
        await controls.wake_up()
        assert (await waiting.result()).outputs
        assert not await controls.is_sleeping()


async def test_sleep_is_refused_when_it_cannot_be_undone(connection: Connection, pipeline: str) -> None:
    """Parity: what cannot be undone is refused; whoever slept already is woken, and everybody works on."""
    spec = PipelineSpec(
        name=pipeline, heartbeat_timeout=1.0, stages=(callable_stage(0), sim(1, final="json", outputs={"json": "json"}))
    )
    async with serving(connection, spec) as producer:
        controls = Controls(connection, spec)
        with pytest.raises(InvalidRequest, match="level 2 cannot be undone"):
            await controls.sleep(2, stage_ids=[0])
        with pytest.raises(InvalidRequest, match="cannot sleep: the engines are"):
            await controls.sleep()
        assert list(await controls.collective_rpc("naps", stage_ids=[0])) == [False]
        assert not await controls.is_paused()
        assert len((await (await producer.submit(spec, Request(prompt="x"))).result()).outputs) == 2


async def test_everybody_is_as_before_when_a_sleep_is_refused(connection: Connection, pipeline: str) -> None:
    sleepless = StageSpec(
        stage_id=2, name="sleepless", engine="python", model="tests.support.whoami:answer",
        final_output=True, final_output_type="text",
    )  # fmt: skip
    stages = (callable_stage(0), callable_stage(1), sleepless)
    spec = PipelineSpec(name=pipeline, heartbeat_timeout=1.0, stages=stages)
    async with serving(connection, spec):
        controls = Controls(connection, spec)
        await controls.pause_generation("wait", stage_ids=[0])
        await controls.sleep(stage_ids=[1])
        with pytest.raises(InvalidRequest, match="no control method 'sleep'"):
            await controls.sleep()
        assert [await controls.is_paused([stage]) for stage in (0, 1, 2)] == [True, True, False]
        assert [await controls.is_sleeping([stage]) for stage in (0, 1, 2)] == [False, True, False]
        assert list(await controls.collective_rpc("naps", stage_ids=[0, 1])) == [False, True]


async def test_all_replicas_answer_at_once(connection: Connection, pipeline: str) -> None:
    """Parity: collective_rpc reaches every replica at once; one answer each."""
    spec = PipelineSpec(name=pipeline, heartbeat_timeout=1.0, stages=(callable_stage(0), callable_stage(1)))
    async with serving(connection, spec, replicas=2):
        async with asyncio.timeout(3):  # four naps of a second, side by side
            answer = await collective_rpc(connection, spec, "nap", args=[1.0])
    assert [(one.stage_id, one.replica) for one in answer.answers] == [(0, "r0"), (0, "r1"), (1, "r0"), (1, "r1")]
    assert list(answer) == ["well slept"] * 4
    assert answer.complete


async def test_partial_answer_says_who_is_missing(connection: Connection, pipeline: str) -> None:
    """Parity: a partial answer is stated as such."""
    spec = PipelineSpec(name=pipeline, heartbeat_timeout=1.0, stages=(callable_stage(0),))
    async with serving(connection, spec, replicas=2):
        answer = await collective_rpc(connection, spec, "nap", args=[1.0], timeout=0.2)
    assert answer.unanswered == ((0, "r0"), (0, "r1"))
    assert (answer.answers, answer.complete) == ((), False)
    with pytest.raises(EngineError, match="no answer from replica r0 of stage 0, replica r1 of stage 0"):
        answer.raise_for_partial()


async def test_stage_without_replicas_is_named(connection: Connection, pipeline: str) -> None:
    spec = line(pipeline)
    async with serving(connection, spec, replicas=0):
        answer = await collective_rpc(connection, spec, "echo", stage_ids=[1])
    assert answer.empty_stages == (1,)
    with pytest.raises(EngineError, match="stage 1"):
        answer.raise_for_partial()


async def test_what_a_replica_raises_is_its_answer(connection: Connection, pipeline: str) -> None:
    spec = line(pipeline)
    async with serving(connection, spec):
        answer: CollectiveAnswer = await collective_rpc(connection, spec, "no_such_thing")
    assert [one.failure.http_status for one in answer.failures if one.failure] == [400, 400]
    with pytest.raises(InvalidRequest, match="no_such_thing"):
        answer.raise_for_partial()


async def test_call_is_refused_when_it_makes_no_sense(connection: Connection, pipeline: str) -> None:
    spec = line(pipeline)
    for wrong in ({"stage_ids": [7]}, {"timeout": 0}, {"timeout": 1e9}, {"args": [object()]}):
        with pytest.raises(InvalidRequest):
            await collective_rpc(connection, spec, "echo", **wrong)


async def test_profilers_and_caches_are_refused_when_no_engine_has_them(connection: Connection, pipeline: str) -> None:
    controls = Controls(connection, line(pipeline))
    for order in (controls.start_profile, controls.stop_profile, controls.reset_prefix_cache):
        with pytest.raises(InvalidRequest, match="no stage of pipeline"):
            await order()


async def test_profilers_are_started_where_they_are_set_up_only(connection: Connection, pipeline: str) -> None:
    def llm(stage_id: int, **arguments: Any) -> StageSpec:
        return StageSpec(stage_id=stage_id, name=f"s{stage_id}", engine="vllm", model="m", engine_args=arguments)

    spec = PipelineSpec(name=pipeline, stages=(llm(0), llm(1, profiler_config={"profiler": "torch"})))
    async with serving(connection, spec, replicas=0):
        with pytest.raises(EngineError, match="no answer from stage 1 \\(it has no replica\\)"):
            await Controls(connection, spec).start_profile()
    bare = msgspec.structs.replace(spec, stages=(llm(0),))
    with pytest.raises(InvalidRequest, match=r"no stage .* has a profiler: .*`profiler_config`"):
        await Controls(connection, bare).stop_profile()


@pytest.mark.parametrize("clear", [True, False])
async def test_caches_are_cleared_with_a_pause_unless_it_says_otherwise(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch, clear: bool
) -> None:
    spec = PipelineSpec(
        name=pipeline, stages=(sim(0), StageSpec(stage_id=1, name="llm", engine="vllm", model="m", input_sources=(0,)))
    )
    controls, called = Controls(connection, spec), []

    async def note(method: str, *_: Any, stage_ids: Any = None) -> CollectiveAnswer:
        called.append((method, stage_ids))
        return CollectiveAnswer(method, ())

    monkeypatch.setattr(controls, "collective_rpc", note)
    await controls.pause_generation(clear_cache=clear)
    assert called == [("pause_generation", None), *([("reset_prefix_cache", [1])] if clear else [])]
