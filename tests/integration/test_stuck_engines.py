"""An engine that makes no progress: its slot is busy, its replica is down and started again, its tasks run elsewhere."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from omnibus.broker.connection import Connection
from omnibus.errors import ConfigError, EngineDead, EngineStalled
from omnibus.pipeline.spec import CanarySpec, PipelineSpec, StageSpec
from omnibus.wire import codec, subjects
from omnibus.wire.control import Cancel
from omnibus.wire.envelope import AttemptFailed
from omnibus.wire.request import Request
from omnibus.workers import engine_health
from omnibus.workers.replica import Replica
from tests.integration.test_worker_supervised_replicas import supervised
from tests.support import stuck_stage
from tests.support.stage_bench import stage_bench, up
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
STUCK = 1.0
"""Stall timeout."""
LEASE = 20.0
"""Heartbeat timeout where a lease that a busy machine loses would count as an attempt."""
STAGES = "tests.support.stuck_stage"


@pytest.fixture(autouse=True)
def released() -> Any:
    """Blocked threads end with their test."""
    stuck_stage.let_go.clear()
    yield
    stuck_stage.let_go.set()


def python(function: str, **fields: Any) -> dict[str, Any]:
    return {"engine": "python", "model": f"{STAGES}:{function}", **fields}


async def test_replica_is_down_with_the_reason_and_its_tasks_run_elsewhere_when_nothing_goes_on(
    connection: Connection, pipeline: str
) -> None:
    """A thread that blocks for ever; the task beside it makes progress all the time, and does not hide it."""
    ticking = Request(prompt="tick", sampling_params={"sim": {"tokens": 150, "token_rate": 50}})
    async with stage_bench(connection, pipeline, slots=2, max_attempts=2, heartbeat_timeout=LEASE) as bench:
        stage = replace(bench.stage, stall_timeout=STUCK, engine_args={"stall_on": {"rid": "^a$"}})
        async with up(bench, stage) as (stuck, running):
            await bench.submit("a")
            await bench.submit("b", request=ticking)
            await eventually(lambda: len(stuck._claims) == 2)
            async with up(bench, bench.stage):
                results = [await bench.result(rid, 30) for rid in ("a", "b")]
                assert stuck.record.replica not in [result.replica for result in results]
            await eventually(running.done, 20)
        with pytest.raises(EngineStalled, match="no progress for 1 s"):
            running.result()
        assert (stuck.record.status, stuck.record.reason) == ("down", "stage 'sim': no progress for 1 s")
        for rid in ("a", "b"):
            (told,) = bench.attempts[rid]
            assert isinstance(told, AttemptFailed)
            assert (told.attempt.code, told.attempt.delivery) == ("engine_stalled", 1)
        await bench.all_done()


BLOCKING: dict[str, dict[str, Any]] = {
    **{function: {"engine": "python", "model": f"{STAGES}:{function}"} for function in ("hold", "hold_generating")},
    **{f"{name}, sim": {"input_processor": f"{STAGES}:{name}"} for name in ("hold_input", "hold_input_async")},
}


@pytest.mark.parametrize("fields", BLOCKING.values(), ids=BLOCKING.keys())
async def test_replica_stays_reachable_and_is_down_with_the_reason_when_a_stages_code_blocks_its_event_loop(
    connection: Connection, pipeline: str, fields: dict[str, Any]
) -> None:
    """Its lease is shorter than the time until it counts as stuck: the lease is kept, and nobody else runs the task before."""
    async with stage_bench(connection, pipeline, max_attempts=2, heartbeat_timeout=1.0) as bench:
        async with up(bench, replace(bench.stage, stall_timeout=3 * STUCK, **fields)) as (stuck, running):
            await bench.submit("a", prompt="block")
            await eventually(lambda: len(stuck._claims) == 1)
            async with up(bench, bench.stage):
                assert (await bench.result("a", 30)).replica != stuck.record.replica
            await eventually(running.done, 20)
        with pytest.raises(EngineStalled, match="no progress for 3 s"):
            running.result()
        assert (stuck.record.status, stuck.record.reason) == ("down", "stage 'sim': no progress for 3 s")
        assert [(one.attempt.code, one.attempt.delivery) for one in bench.attempts["a"]] == [("engine_stalled", 1)]
        await bench.all_done()


async def test_process_is_killed_and_serves_again_when_async_code_blocked_it(
    connection: Connection, pipeline: str
) -> None:
    fields = python("hold", stall_timeout=STUCK)
    async with (
        stage_bench(connection, pipeline, max_attempts=2, heartbeat_timeout=LEASE, **fields) as bench,
        supervised(bench, bench.stage, 1) as (supervisor, _),
    ):
        await bench.submit("stuck", prompt="block")
        failed = await bench.failure("stuck", 60)
        assert (failed.failure.code, failed.failure.attempts) == ("engine_stalled", 2)
        await bench.submit("fine")
        await bench.result("fine", 30)
        assert sum(supervisor.restarts.values()) == 2


async def test_replica_is_not_stuck_when_its_input_processor_works_through_a_burst(
    connection: Connection, pipeline: str
) -> None:
    """The last waits longer than the stall timeout, while those before it are done one by one."""
    rids = [f"r{number}" for number in range(25)]
    fields = {"input_processor": f"{STAGES}:slow_input", "stall_timeout": STUCK, "slots": len(rids)}
    async with stage_bench(connection, pipeline, **fields) as bench:
        for rid in rids:
            await bench.submit(rid)
        async with bench.replica() as replica:
            for rid in rids:
                assert (await bench.result(rid, 30)).replica == replica.record.replica
            assert replica.record.status == "up"
            await bench.all_done()


@pytest.mark.parametrize("kind", ["exit", "cancelled", "lines"])
async def test_replica_is_down_with_the_reason_when_the_watch_over_its_death_raises(
    connection: Connection, pipeline: str, kind: str
) -> None:
    async with stage_bench(connection, pipeline, **python("Dying")) as bench:
        async with up(bench, bench.stage) as (replica, running):
            await bench.submit("a", prompt=kind)
            await eventually(running.done, 20)
        with pytest.raises(EngineDead, match={"exit": "SystemExit", "cancelled": "CancelledError"}.get(kind, kind[:4])):
            running.result()
        assert replica.record.status == "down"


async def test_drain_stays_in_order_when_the_engine_cannot_be_closed(connection: Connection, pipeline: str) -> None:
    with capture_logs() as logged:
        async with stage_bench(connection, pipeline, **python("Unclosable")) as bench:
            async with up(bench, bench.stage) as (replica, running):
                await bench.submit("a")
                await bench.result("a")
            running.result()
    (failed,) = [entry for entry in logged if entry["event"] == "engine.close_failed"]
    assert failed["error"] == "ValueError: the device is busy"
    assert replica._metrics.errors.labels("engine-close")._value.get() == 1
    assert replica.record.status == "down"


@pytest.mark.parametrize("function", ["answer", "wait"])
async def test_slot_is_busy_until_the_thread_ends_when_its_request_is_over(
    connection: Connection, pipeline: str, function: str
) -> None:
    async with stage_bench(connection, pipeline, **python(function)) as bench, bench.replica() as replica:
        await bench.submit("a", prompt="block")
        await eventually(lambda: len(replica._claims))
        await connection.publish(subjects.ctl_all(pipeline), codec.encode(Cancel(rids=("a",), until=2**40)))
        await eventually(lambda: not replica._claims.held, 20)
        await bench.submit("b")
        await bench.submit("c", seconds=1.0)
        assert (replica._slots._in_hand, await bench.queued()) == (1, 2), "nobody runs them beside the thread"
        stuck_stage.let_go.set()
        await bench.result("b", 20)
        await bench.all_done()


async def test_healthy_requests_all_end_when_the_only_replica_is_stuck_on_one(
    connection: Connection, pipeline: str
) -> None:
    """Beside the stuck one, and after it."""
    async with stage_bench(connection, pipeline, slots=2, max_attempts=3, heartbeat_timeout=LEASE) as bench:
        stage = replace(bench.stage, stall_timeout=STUCK, engine_args={"stall_on": {"rid": "stuck"}, "latency": 0.2})
        async with supervised(bench, stage, 1) as (supervisor, view):
            before = await eventually(lambda: [one for one in view.replicas() if one.status == "up"])
            for rid in ("a", "stuck", "b", "c"):
                await bench.submit(rid)
            for rid in ("a", "b", "c"):
                await bench.result(rid, 30)
            failed = await bench.failure("stuck", 60)
            assert (failed.failure.code, failed.failure.attempts) == ("engine_stalled", 3)
            await bench.submit("d")
            await bench.result("d", 30)
            assert sum(supervisor.restarts.values()) == 3
            assert before[0].pid not in [one.pid for one in view.replicas() if one.status == "up"]


@pytest.mark.parametrize("function", ["answer", "wait"])
async def test_execution_ends_with_a_typed_error_and_one_attempt_when_it_takes_longer_than_its_stage_allows(
    connection: Connection, pipeline: str, function: str
) -> None:
    async with stage_bench(connection, pipeline, **python(function, timeout=0.5)) as bench, bench.replica():
        await bench.submit("a", prompt="block")
        failed = await bench.failure("a", 20)
        assert (failed.failure.code, failed.failure.http_status, failed.dead) == ("stage_timeout", 504, False)
        assert "0.5 s" in failed.failure.message
        stuck_stage.let_go.set()
        await bench.submit("b")
        await bench.result("b", 20)
        assert bench.attempts["a"] == []


KINDS = ("surrogate", "wordless", "cancelled", "interrupt", "exit", "base", "lines")
FUNCTIONS = ("raise_plain", "raise_generating", "raise_async", "raise_async_generating")


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_what_leaves_a_stages_code_is_reported_at_once_whatever_it_is(
    connection: Connection, pipeline: str, function: str
) -> None:
    kinds = (*KINDS, "cancels itself") if function == "raise_async" else KINDS
    async with (
        stage_bench(connection, pipeline, slots=4, max_attempts=2, heartbeat_timeout=30.0, **python(function)) as bench,
        bench.replica(),
    ):
        for kind in kinds:
            await bench.submit(kind.replace(" ", "-"), prompt=kind)
        await bench.submit("fine")
        failures = {kind: await bench.failure(kind.replace(" ", "-"), 15) for kind in kinds}
        await bench.result("fine")
        await bench.all_done()
    assert {(one.failure.code, one.failure.attempts) for one in failures.values()} == {("engine_error", 2)}
    assert failures["lines"].failure.message == "ValueError: first line of config.json"
    assert failures["surrogate"].failure.message == "ValueError: cannot read weights.bin"
    assert "WordlessError" in failures["wordless"].failure.message
    last = failures["lines"].attempt
    assert last is not None
    assert re.fullmatch(r"stuck_stage\.py:\d+ in _raise", last.where)
    assert last.detail == "first line of /srv/models/thinker/config.json\nsecond line"


async def test_traceback_of_a_stages_exception_is_logged_once_when_it_fails_at_every_attempt(
    connection: Connection, pipeline: str
) -> None:
    with capture_logs() as logged:
        async with stage_bench(connection, pipeline, max_attempts=3, **python("raise_plain")) as bench, bench.replica():
            await bench.submit("a", prompt="lines")
            await bench.failure("a", 20)
    assert [entry["event"] for entry in logged].count("stage.raised") == 1


def canary(file: Path, **fields: Any) -> CanarySpec:
    return CanarySpec(request={"prompt": f"canary {file}"}, interval=0.2, **{"timeout": 10.0, **fields})


@pytest.mark.parametrize("sickness", ["raise", "block"])
async def test_idle_replica_is_down_when_it_fails_its_canary(
    connection: Connection, pipeline: str, tmp_path: Path, sickness: str
) -> None:
    file, timeout = tmp_path / "sick", 0.5 if sickness == "block" else 20.0
    reason = {
        "raise": "the canary failed: RuntimeError: the device is lost",
        "block": "the canary was not answered within 0.5 s",
    }[sickness]
    async with stage_bench(connection, pipeline, **python("asked", canary=canary(file, timeout=timeout))) as bench:
        async with up(bench, bench.stage) as (replica, running):
            await bench.submit("a")
            await bench.result("a")
            assert replica.record.status == "up"
            file.write_text(sickness)
            await eventually(running.done, 20)
        with pytest.raises(EngineDead):
            running.result()
        assert (replica.record.status, replica.record.reason) == ("down", f"stage 'sim': {reason}")


async def test_busy_replica_is_asked_no_canary(
    connection: Connection, pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = engine_health.EngineHealth._ask

    async def ask(self: engine_health.EngineHealth, spec: CanarySpec) -> None:
        asked.append("asked")
        await real(self, spec)

    monkeypatch.setattr(engine_health.EngineHealth, "_ask", ask)
    async with (
        stage_bench(connection, pipeline, slots=2, **python("answer", canary=canary(tmp_path / "well"))) as bench,
        bench.replica() as replica,
    ):
        await eventually(lambda: len(asked) > 1)
        await bench.submit("a", prompt="block")
        await eventually(lambda: len(replica._claims))
        so_far = len(asked)
        await bench.submit("b", seconds=30.0)
        await bench.result("b")
        await asyncio.sleep(0.6)  # three intervals in which nothing may happen
        assert len(asked) == so_far
        stuck_stage.let_go.set()
        await bench.result("a")
        await eventually(lambda: len(asked) > so_far)
        await bench.submit("c")
        await bench.result("c")


async def test_replica_does_not_start_when_its_canary_is_no_request(connection: Connection, pipeline: str) -> None:
    stage = StageSpec(stage_id=0, name="s", engine="sim", canary=CanarySpec(request={"prompt": 3.5}))
    with pytest.raises(ConfigError, match=r"canary\.request"):
        Replica(connection, PipelineSpec(name=pipeline, stages=(stage,)), stage)
