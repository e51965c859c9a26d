"""Tasks that cannot be run, must not be run any more, or fail: every one of them ends, and the rest goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from omnibus.broker.connection import Callback, Connection, ReceivedMessage
from omnibus.broker.delivery import ATTEMPTS_HEADER, Delivery, claimed
from omnibus.errors import EngineDead
from omnibus.ledger.records import Ledger
from omnibus.registry.death.claim_book import ClaimBook
from omnibus.requests.record import Record
from omnibus.wire import codec, subjects
from omnibus.wire.control import Announcement, Cancel
from omnibus.wire.envelope import StageFailed, StageResult
from omnibus.wire.payload import MSGPACK, ObjectKey, Payload
from omnibus.workers import task_service
from omnibus.workers.assignment import Interruption
from tests.support.stage_bench import StageBench, make_task, stage_bench
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


async def cancel(bench: StageBench, rid: str) -> None:
    order = Cancel(rids=(rid,), until=2**40)
    await bench.conn.publish(subjects.ctl_all(bench.spec.name), codec.encode(order))


async def test_rejected_request_fails_at_once_with_the_engines_status(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, reject_on={"rid": "bad"}) as bench, bench.replica():
        await bench.submit("bad")
        failed = await bench.failure("bad")
        await bench.all_done()
    assert (failed.failure.code, failed.failure.http_status, failed.failure.stage_id) == ("engine_rejected", 400, 0)
    assert not failed.dead


async def test_engine_fault_is_tried_again_until_it_works(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, fail_on={"attempts": [1, 2]}) as bench, bench.replica():
        await bench.submit("a")
        await bench.result("a")
        await bench.all_done()


async def test_task_that_was_requeued_is_claimed_no_more(connection: Connection, pipeline: str) -> None:
    async with (
        ClaimBook(connection, pipeline) as claims,
        stage_bench(connection, pipeline, fail_on={"attempts": [1]}, hang_on={"attempts": [2]}) as bench,
        bench.replica(grace=0.0) as replica,
    ):
        heard: list[Announcement] = []
        await connection.subscribe(subjects.claims(pipeline), _append(heard))
        await bench.submit("a")
        await eventually(lambda: [claimed(one)[1] for _, one in claims.held(replica.record)] == [2])
        assert [claimed(one)[1] for change in heard for one in getattr(change, "released", ())] == [1]


def _append(heard: list[Announcement]) -> Callback:
    async def on_message(message: ReceivedMessage) -> None:
        heard.append(codec.decode(message.data, Announcement))

    return on_message


async def test_request_ends_dead_when_every_attempt_fails(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, fail_on={"rid": "a"}, max_attempts=2) as bench, bench.replica():
        await bench.submit("a")
        failed = await bench.failure("a")
        await bench.all_done()
    assert failed.dead
    assert (failed.failure.code, failed.failure.attempts) == ("engine_error", 2)


async def test_delivery_beyond_the_attempts_is_not_run(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, max_attempts=2, hang_on={"rid": "a"}) as bench:
        await bench.submit("a")
        for _ in range(2):  # each takes the task and dies with it
            async with bench.replica(stop=False) as replica:
                await eventually(lambda: replica.record.in_flight or replica.record.status != "up", 5)
        async with bench.replica():
            failed = await bench.failure("a")
            await bench.all_done()
    assert failed.dead
    assert (failed.failure.code, failed.failure.attempts) == ("attempts_exhausted", 2)


async def test_expired_task_is_not_run(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench:
        await bench.submit("late", seconds=-1.0)
        await bench.submit("fine")
        async with bench.replica():
            await bench.result("fine")
            await bench.all_done()
        assert bench.published["late"] == 0


async def test_running_task_stops_when_its_request_is_cancelled(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline, hang_on={"rid": "hang"}) as bench, bench.replica() as replica:
        await bench.submit("hang")
        await eventually(lambda: replica.record.in_flight)
        await cancel(bench, "hang")
        await bench.all_done()
        await bench.submit("next")
        await bench.result("next")
        assert bench.published["hang"] == 0


async def test_cancelled_id_is_remembered_and_dropped_when_it_still_arrives(
    connection: Connection, pipeline: str
) -> None:
    async with stage_bench(connection, pipeline) as bench, bench.replica():
        await cancel(bench, "a")
        await bench.conn.flush()
        await bench.submit("b")
        await bench.result("b")
        await bench.submit("a")
        await bench.all_done()
        assert bench.published["a"] == 0


async def _hang(_rid: str) -> None:
    await asyncio.Event().wait()


async def _break(_rid: str) -> None:
    raise RuntimeError("the engine is confused")


@pytest.mark.parametrize("abort", [_hang, _break])
async def test_slot_is_free_again_when_the_engine_cannot_abort(
    connection: Connection, pipeline: str, abort: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_service, "ABORT_TIMEOUT", 0.2)
    async with stage_bench(connection, pipeline, latency=0.1, hang_on={"rid": "stuck"}) as bench, bench.replica() as it:
        monkeypatch.setattr(it._engine, "abort", abort)
        await bench.submit("stuck")
        await eventually(lambda: it._engine.stats().running)
        await cancel(bench, "stuck")
        await bench.submit("a")
        await bench.result("a")
        await bench.all_done()
    assert not bench.events["stuck"]


async def test_an_attempt_that_lost_its_lease_does_not_cut_off_the_next_one_here(
    connection: Connection, pipeline: str
) -> None:
    words = [f"word-{number}" for number in range(60)]
    async with stage_bench(connection, pipeline, slots=2, token_rate=20) as bench, bench.replica() as replica:
        await bench.submit("a", " ".join(words))
        await eventually(lambda: replica._engine.stats().running == 1)
        (first,) = replica._claims._held
        await first.delivery.nak(0.0)
        await eventually(lambda: replica._engine.stats().running == 2, what="it was delivered again")
        first.interrupt(Interruption.ABANDONED)
        result = await bench.result("a")
        await bench.all_done()
    assert result.final is not None
    assert (result.final.finish_reason, result.final.usage.completion_tokens) == ("stop", len(words))
    assert not bench.attempts["a"]


@pytest.mark.parametrize("max_attempts", [3, 1])
async def test_what_an_engine_aborts_by_itself_is_a_failed_attempt_and_no_result(
    connection: Connection, pipeline: str, max_attempts: int
) -> None:
    settings = {"max_attempts": max_attempts, "token_rate": 20}
    async with stage_bench(connection, pipeline, **settings) as bench, bench.replica() as replica:
        await bench.submit("a", "one two three four five six seven")
        await eventually(lambda: replica._engine.stats().running)
        await replica._engine.abort("a")
        end = await bench.event("a")
        await bench.all_done()
    if max_attempts == 1:
        assert isinstance(end, StageFailed)
        assert (end.failure.code, end.dead) == ("engine_error", True)
    else:
        assert isinstance(end, StageResult)
        assert end.final is not None
        assert (end.final.finish_reason, end.final.usage.completion_tokens) == ("stop", 7)
        assert len(bench.attempts["a"]) == 1


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x80", b"\xc1"])
async def test_malformed_task_is_acknowledged_and_later_ones_run(
    connection: Connection, pipeline: str, data: bytes
) -> None:
    async with stage_bench(connection, pipeline) as bench, bench.replica():
        await connection.js_publish(subjects.task(pipeline, 0, "interactive", "unknown"), data)
        await bench.submit("a")
        await bench.result("a")
        await bench.all_done()


async def test_task_of_an_impossible_id_is_acknowledged(connection: Connection, pipeline: str) -> None:
    """No record can bear such a name: left in the queue, it would come again for ever."""
    async with stage_bench(connection, pipeline) as bench, bench.replica():
        await connection.js_publish(subjects.task(pipeline, 0, "interactive", "x") + 64 * "x", b"garbage")
        await bench.all_done()


async def test_malformed_task_ends_the_request_that_its_subject_names(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench, bench.replica():
        record = Record(ticket=make_task(bench.spec, "a").ticket)
        await Ledger(connection, pipeline).create(record)
        await connection.js_publish(subjects.task(pipeline, 0, "interactive", "a"), b"garbage")
        failed = await bench.failure("a")
        await bench.all_done()
    assert (failed.failure.code, failed.failure.http_status) == ("invalid_request", 400)
    assert "malformed" in failed.failure.message


async def test_lost_payload_is_reported_at_once_so_that_the_request_can_be_run_anew(
    connection: Connection, pipeline: str
) -> None:
    lost = Payload(media_type=MSGPACK, nbytes=3, locations=(ObjectKey("gone"),))
    async with stage_bench(connection, pipeline) as bench, bench.replica():
        task = make_task(bench.spec, "a")
        task = replace(task, ticket=replace(task.ticket, request=lost))
        await connection.js_publish(subjects.task(pipeline, 0, "interactive", "a"), codec.encode(task))
        failed = await bench.failure("a")
        await bench.all_done()
    assert failed.failure.code == "payload_lost"
    assert not failed.dead


async def test_task_under_a_wrong_subject_is_malformed(connection: Connection, pipeline: str) -> None:
    async with stage_bench(connection, pipeline) as bench, bench.replica():
        task = await bench.submit("a")
        await connection.js_publish(subjects.task(pipeline, 0, "interactive", "b"), codec.encode(task))
        await bench.all_done()
        assert bench.published["b"] == 0


async def submit_at_last_attempt(bench: StageBench, rid: str) -> None:
    task = make_task(bench.spec, rid, "one two")
    subject = subjects.task(bench.spec.name, 0, task.ticket.lane, rid)
    used = {ATTEMPTS_HEADER: str(bench.spec.max_attempts - 1)}
    await bench.conn.js_publish(subject, codec.encode(task), subjects.message_id("task", rid, 0, 1), headers=used)


async def test_last_attempt_begins_only_when_another_is_put_back_that_takes_long_to_publish(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_service, "OTHERS_ARRIVE", 0.02)
    happened: list[str] = []
    requeue = Delivery.requeue

    async def slow(delivery: Delivery, subject: str | None = None) -> None:
        await asyncio.sleep(0.3)
        await requeue(delivery, subject)
        happened.append("put back")

    monkeypatch.setattr(Delivery, "requeue", slow)
    async with stage_bench(connection, pipeline, slots=2, max_attempts=3) as bench:
        for rid in ("a", "b"):
            await submit_at_last_attempt(bench, rid)
        async with bench.replica() as replica:
            run = replica._service._execution.run

            async def noted(*args: Any, **kwargs: Any) -> Any:
                happened.append("run")
                return await run(*args, **kwargs)

            monkeypatch.setattr(replica._service._execution, "run", noted)
            for rid in ("a", "b"):
                await bench.result(rid)
            await bench.all_done()
    assert happened[0] == "put back"
    assert happened.count("run") == 2


async def test_last_attempt_is_not_used_up_when_the_engine_dies_before_it_begins(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_service, "OTHERS_ARRIVE", 5.0)
    async with stage_bench(connection, pipeline, slots=2, max_attempts=3) as bench:
        await submit_at_last_attempt(bench, "a")
        with pytest.raises(EngineDead):  # noqa: PT012 it is raised where the replica ends
            async with bench.replica() as replica:
                await eventually(lambda: len(replica._claims))
                replica._health.fail(EngineDead("another task's fault"))
        monkeypatch.setattr(task_service, "OTHERS_ARRIVE", 0.02)
        async with bench.replica():
            await bench.result("a")
            await bench.all_done()
