"""Late effects of a run that failed against the run that an operator opened: interleaved by hand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from omnibus.broker.connection import Connection
from omnibus.client.dead_letter_admin import DeadLetterAdmin
from omnibus.client.producer import Producer
from omnibus.ledger.acceptance import _resolve_conflict
from omnibus.ledger.dead_letters import DeadLetters
from omnibus.ledger.performer import Performer
from omnibus.ledger.work_queue import WorkQueue
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.advance import ended_effects
from omnibus.requests.effects import KeepDead, Notify, Stop
from omnibus.requests.state import RequestState
from omnibus.wire import codec, subjects
from omnibus.wire.envelope import DeadlinePassed, StageFailed
from tests.support.dying import bury, healthy
from tests.support.flow import serving
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
TIMER_AND_TASK = 2


async def reopen(producer: Producer, spec: PipelineSpec, rid: str = "a") -> None:
    admin = await DeadLetterAdmin.open(producer, spec)
    assert await admin.retry(rid) == 2


async def queued(connection: Connection, pipeline: str) -> int:
    return (await WorkQueue(connection, pipeline).traffic()).messages


async def finishes(connection: Connection, spec: PipelineSpec, rid: str = "a") -> None:
    async with serving(connection, spec) as producer:
        done = await producer.wait(spec.name, rid)
    assert (done.state, done.run) == (RequestState.DONE, 2)


def before(method: Callable[..., Awaitable[Any]], act: Callable[[], Awaitable[None]]) -> Callable[..., Awaitable[Any]]:
    """The method of a process that is stopped right before it, while others act; once."""
    acted = False

    async def stopped(*args: Any, **kwargs: Any) -> Any:
        nonlocal acted
        if not acted:
            acted = True
            await act()
        return await method(*args, **kwargs)

    return stopped


@pytest.mark.parametrize("moment", ["next_sequence", "_stands", "purge"])
async def test_retried_run_keeps_its_task_and_timer_when_the_purge_of_the_failed_one_comes_late(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """An orchestrator that was stopped at any moment of it, and goes on when the operator has been there."""
    spec = healthy(pipeline)
    dead_letter = await bury(connection, spec, "a")
    late = Performer(connection, pipeline)
    owner = late if moment == "_stands" else late.queue
    async with Producer(connection) as producer:
        monkeypatch.setattr(owner, moment, before(getattr(owner, moment), lambda: reopen(producer, spec)))
        await late.perform(ended_effects(dead_letter.record))
        assert (await producer.result(pipeline, "a")).state is RequestState.OPEN
    assert await queued(connection, pipeline) == TIMER_AND_TASK
    await finishes(connection, spec)


async def test_what_is_left_of_a_failed_run_is_purged_while_nobody_has_opened_it_again(
    connection: Connection, pipeline: str
) -> None:
    dead_letter = await bury(connection, healthy(pipeline), "a")
    late = Performer(connection, pipeline)
    await late.queue.schedule_deadline("a", dead_letter.record.nonce, dead_letter.record.ticket.deadline)
    await connection.js_publish(subjects.task(pipeline, 0, "interactive", "a"), b"left behind")
    await late.perform(ended_effects(dead_letter.record))
    assert await queued(connection, pipeline) == 0


async def test_retried_run_goes_on_when_the_stop_of_the_failed_one_comes_late(
    connection: Connection, pipeline: str
) -> None:
    """Sent to workers and orchestrators before the retry, and again while it runs."""
    spec = healthy(pipeline)
    dead_letter = await bury(connection, spec, "a")
    late, effects = Performer(connection, pipeline), ended_effects(dead_letter.record)
    stop = [effect for effect in effects if isinstance(effect, Stop | Notify)]
    async with serving(connection, spec) as producer:
        await late.perform(stop)
        await connection.flush()
        await reopen(producer, spec)
        await late.perform(stop)
        done = await producer.wait(pipeline, "a")
    assert (done.state, done.run) == (RequestState.DONE, 2)


async def test_late_events_of_the_failed_run_change_nothing_of_the_retried_one(
    connection: Connection, pipeline: str
) -> None:
    spec = healthy(pipeline)
    dead_letter = await bury(connection, spec, "a")
    ticket, failure = dead_letter.record.ticket, dead_letter.record.failure
    assert failure is not None
    async with serving(connection, spec, replicas=0) as producer:
        await reopen(producer, spec)
        failed = StageFailed(ticket=ticket, stage_id=0, failure=failure, dead=True)
        await connection.js_publish(subjects.event(pipeline, 0, "failed", "a"), codec.encode(failed))
        deadline = DeadlinePassed(rid="a", deadline=ticket.deadline)
        await connection.js_publish(subjects.deadline_event(pipeline, "a"), codec.encode(deadline))

        async def handled() -> bool:
            return (await WorkQueue(connection, pipeline).depths())["events"].total == 0

        await eventually(handled, what="both events are handled")
        opened = await producer.result(pipeline, "a")
        assert (opened.state, opened.run) == (RequestState.OPEN, 2)
    assert await queued(connection, pipeline) == TIMER_AND_TASK
    await finishes(connection, spec)


@pytest.mark.parametrize("moment", ["read_latest", "read", "_keep_input"])
async def test_dead_letter_of_a_request_that_is_done_does_not_come_back_when_its_write_comes_late(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    spec = healthy(pipeline)
    dead_letter = await bury(connection, spec, "a")
    late = Performer(connection, pipeline)

    async def run_to_its_end() -> None:
        async with serving(connection, spec) as producer:
            await reopen(producer, spec)
            await producer.wait(pipeline, "a")
            await eventually(lambda: gone(connection, pipeline), what="the letter is gone")

    owner = late.dead_letters._ledger if moment == "read_latest" else late.dead_letters
    monkeypatch.setattr(owner, moment, before(getattr(owner, moment), run_to_its_end))
    monkeypatch.setattr(late.dead_letters, "read", _nothing) if moment != "read" else None
    await late.perform([KeepDead(dead_letter.record)])
    assert await gone(connection, pipeline)


async def _nothing(_rid: str) -> None:
    return None


async def gone(connection: Connection, pipeline: str) -> bool:
    return await DeadLetters(connection, pipeline).read("a") is None


async def test_retried_run_keeps_its_task_and_timer_when_a_client_that_saw_it_failed_attaches_late(
    connection: Connection, pipeline: str
) -> None:
    """A client that attaches to an ended request removes its timer: that of the failed run, as it knows it."""
    spec = healthy(pipeline)
    await bury(connection, spec, "a")
    late = Performer(connection, pipeline)
    seen = await late.ledger.read("a")
    assert seen is not None
    async with Producer(connection) as producer:
        await reopen(producer, spec)
        await _resolve_conflict(late, seen, seen.record)
        assert await queued(connection, pipeline) == TIMER_AND_TASK
    await finishes(connection, spec)


async def test_retried_run_is_stopped_by_its_own_cancellation(connection: Connection, pipeline: str) -> None:
    """The fence must not protect it from what is meant for it; and nobody can run it again then."""
    spec = healthy(pipeline)
    await bury(connection, spec, "a")
    async with serving(connection, spec, replicas=0) as producer:
        await reopen(producer, spec)
        assert (await producer.cancel(pipeline, "a")).state is RequestState.CANCELLED
        assert await queued(connection, pipeline) == 0
        assert await gone(connection, pipeline)
