"""The end of a request, written without a look at its record; and what its late purge leaves alone."""

from __future__ import annotations

import gc
import weakref

import pytest
from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.errors import RevisionConflict
from omnibus.ledger.acceptance import admit
from omnibus.ledger.performer import Performer
from omnibus.ledger.work_queue import WorkQueue
from omnibus.pipeline.route import Forwarding
from omnibus.requests.advance import ended_effects
from omnibus.requests.record import Record
from omnibus.requests.state import RequestState
from omnibus.wire import stores, subjects
from omnibus.wire.envelope import FinalOutput, StageResult
from omnibus.wire.failed_attempt import Attempt
from omnibus.wire.payload import TEXT, Payload
from omnibus.wire.request import Request
from tests.integration.test_durable_admission import queue_is_empty, record_of
from tests.support.flow import line, serving
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


async def _last_sequence(connection: Connection, stream: str) -> int:
    return int((await connection.api(f"STREAM.INFO.{stream}"))["state"]["last_seq"])


async def _events(connection: Connection, pipeline: str) -> int:
    consumer = f"CONSUMER.INFO.{stores.work_stream(pipeline)}.{stores.EVENTS_CONSUMER}"
    return int((await connection.api(consumer))["delivered"]["consumer_seq"])


@pytest.mark.parametrize(("forwarding", "events"), [(Forwarding.ORCHESTRATOR, 2), (Forwarding.DIRECT, 0)])
async def test_record_is_written_twice_and_no_event_is_needed_when_the_last_worker_ends_the_request(
    connection: Connection, pipeline: str, forwarding: Forwarding, events: int
) -> None:
    async with serving(connection, line(pipeline, forwarding)) as producer:
        result = await (await producer.submit(line(pipeline, forwarding), Request(prompt="hi"))).result()
        assert result.state is RequestState.DONE
        assert [timing.stage_id for timing in result.timings] == [0, 1]
        assert (await producer.result(pipeline, result.rid)).outputs == result.outputs
        await queue_is_empty(connection, pipeline)
        assert await _last_sequence(connection, f"KV_{stores.requests_bucket(pipeline)}") == 2
        assert await _events(connection, pipeline) == events


def _last_result(record: Record, revision: int) -> StageResult:
    final = FinalOutput(stage_id=1, modality="text", items=(Payload.inline(b"hi", TEXT),))
    return StageResult(ticket=replace(record.ticket, revision=revision), stage_id=1, replica="r0", final=final)


async def test_end_is_refused_and_changes_nothing_when_the_record_is_another_one_by_then(
    connection: Connection, pipeline: str
) -> None:
    spec, performer = line(pipeline, Forwarding.DIRECT), Performer(connection, pipeline)
    await ensure_layout(connection, layout_of(spec))
    record = record_of(spec, "a")
    revision = await performer.open(record)
    noted = record.noting(Attempt(stage_id=0, run=1, task_seq=1, delivery=1, at=1.0, code="engine_error", message="x"))
    await performer.ledger.save(noted, revision)
    assert not await performer.end(_last_result(record, revision))
    entry = await performer.ledger.read("a")
    assert entry is not None
    assert entry.record == noted


async def test_orchestrator_ends_the_request_when_its_worker_was_refused(connection: Connection, pipeline: str) -> None:
    """The first attempt at the first stage is noted in the record, whose revision is another one then."""
    spec = line(pipeline, Forwarding.DIRECT)
    async with serving(connection, spec, replicas=0) as producer:
        submission = await producer.submit(spec, Request(prompt="hi"))
        performer = (await producer.channel(pipeline)).performer
        entry = await performer.ledger.read(submission.rid)
        assert entry is not None
        attempt = Attempt(stage_id=0, run=1, task_seq=1, delivery=1, at=1.0, code="engine_error", message="x")
        await performer.ledger.save(entry.record.noting(attempt), entry.revision)
        async with serving(connection, spec, orchestrators=0):
            assert (await submission.result()).state is RequestState.DONE
            assert (await producer.result(pipeline, submission.rid)).attempts == (attempt,)
    assert await _events(connection, pipeline) == 1


@pytest.mark.parametrize("queued", [True, False])
async def test_later_request_keeps_its_timer_and_task_when_the_purge_of_an_ended_one_under_its_id_comes_late(
    connection: Connection, pipeline: str, *, queued: bool
) -> None:
    """The process that ended the first was stopped for longer than its record is kept."""
    spec, performer = line(pipeline), Performer(connection, pipeline)
    await ensure_layout(connection, layout_of(spec))
    first = record_of(spec, "a", nonce="first").ended(RequestState.DONE)
    await performer.ledger.create(first)
    await performer.ledger._bucket.delete("a")
    await admit(performer, record_of(spec, "a", nonce="second"))
    await Performer(connection, pipeline).perform(ended_effects(first, queued=queued))
    await connection.flush()
    assert (await WorkQueue(connection, pipeline).traffic()).messages == 2


async def test_no_timer_stays_when_an_id_is_taken_by_another_request(connection: Connection, pipeline: str) -> None:
    spec, performer = line(pipeline), Performer(connection, pipeline)
    await ensure_layout(connection, layout_of(spec))
    await admit(performer, record_of(spec, "a", nonce="first"))
    await admit(performer, record_of(spec, "a", nonce="second"))

    async def only_the_first() -> bool:
        found = await connection.stored_subjects(stores.work_stream(pipeline), "omni.*.timer.*.*")
        return list(found) == [subjects.timer(pipeline, "first", "a")]

    await eventually(only_the_first, what="the second attempt's timer is gone")


async def test_error_is_free_at_once_when_an_id_is_taken_and_no_garbage_is_collected(
    connection: Connection, pipeline: str
) -> None:
    spec, performer = line(pipeline), Performer(connection, pipeline)
    await ensure_layout(connection, layout_of(spec))
    await performer.open(record_of(spec, "a"))
    gc.disable()  # as good as: a process that serves collects rarely
    try:
        try:
            await performer.open(record_of(spec, "a", nonce="other"))
        except RevisionConflict as error:
            is_there = weakref.ref(error)
        await eventually(lambda: is_there() is None)
    finally:
        gc.enable()
