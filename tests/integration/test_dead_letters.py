"""Dead letters: what they tell, and what an operator does with them."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from msgspec.structs import replace

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.broker.objects import ObjectStore
from omnibus.client.dead_letter_admin import DeadLetterAdmin
from omnibus.client.producer import Producer
from omnibus.errors import InvalidRequest, PayloadLost, RequestConflict, UnknownRequest
from omnibus.ledger.dead_letters import DeadLetters
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.death.claim_book import ClaimBook
from omnibus.registry.death.failure_detector import FailureDetector
from omnibus.registry.death.lost_attempts import DIED, SILENT
from omnibus.requests.record import DeadLetter
from omnibus.requests.state import RequestState
from omnibus.wire import codec, stores
from omnibus.wire.payload import Payload
from omnibus.wire.request import REQUEST_MEDIA_TYPE, ImagePart, Message, Request, TextPart
from tests.support.directed import replica
from tests.support.dying import HELLO, bury, faulty, healthy
from tests.support.flow import serving, sim
from tests.support.pictures import bitmap
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
PICTURE = ImagePart(data=bitmap(300_000))  # too large for an envelope: stored apart
LARGE = Request(messages=(Message(role="user", content=(TextPart(text="a red circle"), PICTURE)),))


async def office_of(producer: Producer, spec: PipelineSpec) -> DeadLetterAdmin:
    return await DeadLetterAdmin.open(producer, spec)


async def kept_input(connection: Connection, pipeline: str, rid: str) -> bytes | None:
    try:
        return await ObjectStore(connection, stores.dead_payloads_bucket(pipeline)).get(rid)
    except PayloadLost:
        return None


async def test_dead_letter_names_error_and_replica_of_each_attempt_when_an_engine_fails(
    connection: Connection, pipeline: str
) -> None:
    dead_letter = await bury(connection, healthy(pipeline), "a")
    attempts = dead_letter.record.attempts
    assert [(one.stage_id, one.run, one.delivery, one.code) for one in attempts] == [
        (0, 1, 1, "engine_error"),
        (0, 1, 2, "engine_error"),
    ]
    assert all(one.replica and one.message == "configured to fail" for one in attempts)
    assert attempts[0].at < attempts[1].at


@pytest.mark.parametrize(("judged", "code"), [(True, DIED), (False, SILENT)], ids=["killed", "hung"])
async def test_history_names_the_replica_when_it_was_lost_with_its_attempt(
    connection: Connection, pipeline: str, judged: bool, code: str
) -> None:
    """Nobody but its claims can tell of a replica that is gone: to the judge, or to whoever hears its heartbeat end."""
    spec = faulty(healthy(pipeline, heartbeat_timeout=1.0), hang_on={"rid": "^a$", "attempts": [1]})
    async with serving(connection, spec, replicas=0) as producer, ClaimBook(connection, pipeline) as claims:
        async with replica(connection, spec, dies=True) as lost:
            await producer.submit(spec, HELLO, rid="a")
            await eventually(lambda: claims.held(lost.record), what="the claim")
            record = lost.record
        if judged:
            await FailureDetector(connection, pipeline, claims).mark_down(record)
        async with replica(connection, faulty(spec, latency=1.0)):
            assert (await producer.wait(pipeline, "a")).state is RequestState.DONE
        (attempt,) = (await producer.result(pipeline, "a")).attempts
    assert (attempt.code, attempt.delivery, attempt.replica) == (code, 1, record.replica)


async def test_request_finishes_under_its_own_id_when_it_is_retried(connection: Connection, pipeline: str) -> None:
    spec = healthy(pipeline)
    dead_letter = await bury(connection, spec, "a", LARGE)
    async with serving(connection, spec, replicas=0) as producer:
        admin = await office_of(producer, spec)
        assert await admin.retry("a") == 2
        opened = await producer.result(pipeline, "a")
        assert (opened.state, opened.run) == (RequestState.OPEN, 2)
        allowed = dead_letter.record.ticket.deadline - dead_letter.record.ticket.created
        assert opened.deadline - opened.created == pytest.approx(allowed)
        assert opened.deadline > dead_letter.record.ticket.deadline
        with pytest.raises(RequestConflict, match="runs again already"):
            await admin.retry("a")
        with pytest.raises(RequestConflict, match="cancel it first"):
            await admin.drop("a")
    async with serving(connection, spec) as producer:
        await producer.wait(pipeline, "a")
        done = await producer.result(pipeline, "a")
        assert (done.state, done.run, len(done.attempts)) == (RequestState.DONE, 2, 2)
        await eventually(lambda: nothing_kept(connection, pipeline, "a"), what="the letter and its input are gone")


async def test_retry_runs_when_record_and_stored_input_have_expired(connection: Connection, pipeline: str) -> None:
    """The record lives for 15 minutes, what it refers to for little longer; the letter for seven days."""
    spec = healthy(pipeline)
    dead_letter = await bury(connection, spec, "a", LARGE)
    location = dead_letter.record.ticket.request.object_key
    assert location is not None
    await ObjectStore(connection, stores.payloads_bucket(pipeline)).delete(location)
    await Bucket(connection, stores.requests_bucket(pipeline)).delete("a")
    async with serving(connection, spec) as producer:
        assert await (await office_of(producer, spec)).retry("a") == 2
        done = await producer.wait(pipeline, "a")
    assert (done.state, done.run) == (RequestState.DONE, 2)
    assert done.outputs[0].text


async def test_kept_inputs_live_as_long_as_dead_letters_and_longer_than_payloads(
    connection: Connection, pipeline: str
) -> None:
    await ensure_layout(connection, layout_of(healthy(pipeline)))
    lifetimes = [
        (await connection.api(f"STREAM.INFO.OBJ_{bucket}"))["config"]["max_age"] / 1e9
        for bucket in (stores.dead_payloads_bucket(pipeline), stores.payloads_bucket(pipeline))
    ]
    assert lifetimes[0] > 7 * 24 * 3600 > lifetimes[1]


async def test_dead_letter_is_kept_with_all_its_history_when_the_retry_fails_too(
    connection: Connection, pipeline: str
) -> None:
    spec = healthy(pipeline)
    await bury(connection, spec, "a", LARGE)
    async with serving(connection, faulty(spec)) as producer:
        admin = await office_of(producer, spec)
        await admin.retry("a")
        assert (await producer.wait(pipeline, "a")).state is RequestState.FAILED

        async def told() -> bool:
            return [one.run for one in (await admin.dead_letter("a")).record.attempts] == [1, 1, 2, 2]

        await eventually(told, what="four attempts in the letter")
        assert await kept_input(connection, pipeline, "a")


async def test_retried_request_is_a_dead_letter_again_when_its_deadline_passes(
    connection: Connection, pipeline: str
) -> None:
    """Nobody served it in time: expired, it could never be run again."""
    spec = healthy(pipeline)
    await bury(connection, spec, "a", Request(prompt="hi", deadline=1.5))
    async with serving(connection, spec, replicas=0) as producer:
        admin = await office_of(producer, spec)
        await admin.retry("a")
        late = await producer.wait(pipeline, "a")
        assert late.state is RequestState.FAILED
        assert late.failure is not None
        assert late.failure.code == "deadline_exceeded"
        assert await admin.retry("a") == 3


async def test_retry_is_resumed_when_its_operator_died_before_anything_was_queued(
    connection: Connection, pipeline: str
) -> None:
    spec = healthy(pipeline)
    await bury(connection, spec, "a")
    async with serving(connection, spec, replicas=0) as producer:
        admin = await office_of(producer, spec)
        await admin.retry("a")
        await (await producer.channel(pipeline)).performer.queue.purge("a")
        assert await admin.retry("a") == 3
    async with serving(connection, spec) as producer:
        assert (await producer.wait(pipeline, "a")).state is RequestState.DONE


async def test_retry_is_refused_when_the_id_is_another_requests_or_the_pipeline_cannot_serve_it(
    connection: Connection, pipeline: str
) -> None:
    spec = healthy(pipeline)
    await bury(connection, spec, "a", Request(prompt="hi", sampling_params={"s0": {}}))
    await Bucket(connection, stores.requests_bucket(pipeline)).delete("a")
    renamed = PipelineSpec(name=pipeline, stages=(sim(7, final="text"),))
    async with Producer(connection) as producer:
        with pytest.raises(InvalidRequest, match="s0"):
            await (await office_of(producer, renamed)).retry("a")
        await producer.submit(spec, HELLO, rid="a")
        with pytest.raises(RequestConflict, match="another request"):
            await (await office_of(producer, spec)).retry("a")


async def test_latest_of_many_are_found_while_a_few_are_in_memory(connection: Connection, pipeline: str) -> None:
    spec, size, count = healthy(pipeline), 200_000, 300
    model = await bury(connection, spec, "a")
    request = Payload.inline(b"x" * size, REQUEST_MEDIA_TYPE)
    bucket = Bucket(connection, stores.requests_bucket(pipeline))
    for number in range(count):
        ticket = replace(model.record.ticket, rid=f"r{number}", request=request)
        died = model.died + (number * 7) % count + 1  # in no order of their ids
        await bucket.create(
            f"dead.r{number}", codec.encode(DeadLetter(record=replace(model.record, ticket=ticket), died=died))
        )
    await bucket.create("dead.nonsense", b"nonsense")
    async with Producer(connection) as producer:
        admin = await office_of(producer, spec)
        gc.collect()
        tracemalloc.start()
        found = await admin.latest(5)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert [one.died for one in found] == [model.died + count - number for number in range(5)]
        assert most < count * size // 2
        assert len(await admin.dead_letters()) == count + 1


async def test_nothing_is_left_when_a_dead_letter_is_dropped(connection: Connection, pipeline: str) -> None:
    spec = healthy(pipeline)
    await bury(connection, spec, "a", LARGE)
    assert await kept_input(connection, pipeline, "a")
    async with Producer(connection) as producer:
        admin = await office_of(producer, spec)
        assert [dead_letter.record.rid for dead_letter in await admin.dead_letters()] == ["a"]
        await admin.drop("a")
        assert await admin.dead_letters() == []
        with pytest.raises(UnknownRequest):
            await admin.drop("a")
    assert await nothing_kept(connection, pipeline, "a")


async def nothing_kept(connection: Connection, pipeline: str, rid: str) -> bool:
    dead_letter = await DeadLetters(connection, pipeline).read(rid)
    return dead_letter is None and await kept_input(connection, pipeline, rid) is None
