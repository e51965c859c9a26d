"""Cancelling a request wherever it is: told at once, nothing of it left, its slot free."""

from __future__ import annotations

import asyncio
import time

import pytest

from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.client.producer import Producer
from omnibus.errors import UnknownRequest
from omnibus.ledger.raw_requests import find_raw
from omnibus.ledger.work_queue import WorkQueue
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.requests.state import RequestState
from omnibus.wire import codec, stores, subjects
from omnibus.wire.control import Cancel, Control
from omnibus.wire.out import EndNotice, Out
from omnibus.wire.request import Request
from tests.support.flow import line, serving, sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
HANG = {"hang_on": {"rid": "^stuck"}}
HELLO = Request(prompt="a red circle")


async def has_task(connection: Connection, pipeline: str, stage_id: int, rid: str, lane: str = "interactive") -> bool:
    """Whether a task of a stage is queued or in hand."""
    body = {"last_by_subj": subjects.task(pipeline, stage_id, lane, rid)}
    return await connection.find(f"STREAM.MSG.GET.{stores.work_stream(pipeline)}", body) is not None


async def cancelled(producer: Producer, pipeline: str, rid: str) -> None:
    """Cancelled, acknowledged with the state, twice the same, and nothing left."""
    for _ in range(2):
        assert (await producer.cancel(pipeline, rid)).state is RequestState.CANCELLED
    queue = WorkQueue(producer.connection, pipeline)
    await eventually(lambda: _is_empty(queue), what="nothing is queued")


async def _is_empty(queue: WorkQueue) -> bool:
    return (await queue.traffic()).messages == 0


def one_slot(pipeline: str, **fields: object) -> PipelineSpec:
    stage = StageSpec(
        stage_id=0, name="s0", engine="sim", slots=1, final_output=True, final_output_type="text", engine_args=HANG
    )
    return PipelineSpec(name=pipeline, stages=(stage,), deadline=20.0, heartbeat_timeout=1.0, **fields)  # type: ignore[arg-type]


async def test_slot_is_free_at_once_when_its_request_is_cancelled(connection: Connection, pipeline: str) -> None:
    spec = one_slot(pipeline)
    async with serving(connection, spec) as producer:
        await producer.submit(spec, HELLO, rid="stuck")
        waits = await producer.submit(spec, HELLO, rid="next")
        queued = await producer.submit(spec, HELLO, rid="stuck-in-the-queue")
        assert (await producer.cancel(pipeline, queued.rid)).state is RequestState.CANCELLED
        assert not await has_task(connection, pipeline, 0, queued.rid)
        assert (await producer.cancel(pipeline, "stuck")).state is RequestState.CANCELLED
        async with asyncio.timeout(3.0):
            assert (await waits.result()).state is RequestState.DONE
        await cancelled(producer, pipeline, "stuck")


async def test_request_is_cancelled_when_it_waits_between_two_stages(connection: Connection, pipeline: str) -> None:
    """Its first stage is done; nobody serves the second."""
    spec = line(pipeline)
    first = PipelineSpec(name=pipeline, stages=spec.stages[:1], heartbeat_timeout=1.0)
    async with serving(connection, first, orchestrators=0) as producer:
        submission = await producer.submit(spec, HELLO)
        subject = subjects.event(pipeline, 0, "result", submission.rid)
        stream = f"STREAM.MSG.GET.{stores.work_stream(pipeline)}"
        await eventually(lambda: connection.find(stream, {"last_by_subj": subject}), what="the result waits")
        await cancelled(producer, pipeline, submission.rid)


async def test_request_is_cancelled_when_a_join_waits_for_its_other_branch(
    connection: Connection, pipeline: str
) -> None:
    spec = PipelineSpec(
        name=pipeline,
        stages=(sim(0), sim(1, 0), sim(2, 0, hang_on={"rid": "."}), sim(3, 1, 2, final="text")),
        deadline=20.0, heartbeat_timeout=1.0,
    )  # fmt: skip
    async with serving(connection, spec) as producer:
        submission = await producer.submit(spec, HELLO)
        channel = await producer.channel(pipeline)

        async def half_joined() -> bool:
            entry = await channel.performer.ledger.read(submission.rid)
            return entry is not None and 1 in entry.record.arrived

        await eventually(half_joined, what="one branch has arrived")
        await cancelled(producer, pipeline, submission.rid)


async def test_request_is_cancelled_when_its_next_attempt_is_delayed(connection: Connection, pipeline: str) -> None:
    spec = PipelineSpec(
        name=pipeline,
        stages=(sim(0, final="text", fail_on={"rid": "."}),),
        deadline=20.0,
        max_attempts=20,
    )
    async with serving(connection, spec) as producer:
        retried = connection.metrics.registry
        submission = await producer.submit(spec, HELLO)
        labels = {"pipeline": pipeline, "stage": "0", "outcome": "retried"}
        await eventually(
            lambda: (retried.get_sample_value("omnibus_deliveries_total", labels) or 0) >= 2,
            what="attempts that failed",
        )
        await cancelled(producer, pipeline, submission.rid)
        before = retried.get_sample_value("omnibus_deliveries_total", labels)
        assert (await (await producer.submit(spec, HELLO, rid=submission.rid)).result()).state is RequestState.CANCELLED
        assert retried.get_sample_value("omnibus_deliveries_total", labels) == before


async def test_request_is_cancelled_when_it_is_on_a_replicas_own_lane(connection: Connection, pipeline: str) -> None:
    stage = StageSpec(
        stage_id=0, name="s0", engine="sim", slots=1, final_output=True, final_output_type="text",
        engine_args=HANG, lb_policy="round-robin",
    )  # fmt: skip
    spec = PipelineSpec(name=pipeline, stages=(stage,), deadline=20.0, heartbeat_timeout=1.0)
    async with serving(connection, spec) as producer:
        await producer.submit(spec, HELLO, rid="stuck-running")
        await producer.submit(spec, HELLO, rid="stuck-behind")
        await eventually(lambda: has_task(connection, pipeline, 0, "stuck-behind", "r0"), what="it is directed")
        assert (await producer.cancel(pipeline, "stuck-behind")).state is RequestState.CANCELLED
        assert not await has_task(connection, pipeline, 0, "stuck-behind", "r0")
        await cancelled(producer, pipeline, "stuck-running")


async def test_raw_request_is_cancelled_when_nobody_has_admitted_it(connection: Connection, pipeline: str) -> None:
    spec = line(pipeline)
    await ensure_layout(connection, layout_of(spec))
    heard: list[Out] = []

    async def on_message(message: object) -> None:
        heard.append(codec.decode(message.data, Out))  # type: ignore[attr-defined]

    async with Producer(connection) as producer:
        await connection.subscribe(subjects.out(pipeline, "me", "raw"), on_message)
        headers = {"Omni-Reply": "me"}
        await connection.js_publish(subjects.request(pipeline, "raw"), b'{"prompt": "hi"}', headers=headers)
        with pytest.raises(UnknownRequest):
            await producer.cancel(pipeline, "raw", tenant="somebody else")
        await cancelled(producer, pipeline, "raw")
        assert await find_raw(connection, pipeline, "raw") is None
        await eventually(lambda: heard, what="its producer is told")
        assert heard[0] == EndNotice(rid="raw", state="cancelled")
        with pytest.raises(UnknownRequest):
            await producer.cancel(pipeline, "nobody")


async def test_no_timer_stays_when_a_raw_request_is_cancelled_whose_orchestrator_died(
    connection: Connection, pipeline: str
) -> None:
    """The first that its admission does is to schedule the deadline."""
    await ensure_layout(connection, layout_of(line(pipeline)))
    queue = WorkQueue(connection, pipeline)
    await connection.js_publish(subjects.request(pipeline, "raw"), b'{"prompt": "hi"}')
    await queue.schedule_deadline("raw", "n", time.time() + 60.0)
    async with Producer(connection) as producer:
        await producer.cancel(pipeline, "raw")
    assert (await queue.traffic()).messages == 0


async def test_raw_request_stays_cancelled_when_an_orchestrator_was_admitting_it(
    connection: Connection, pipeline: str
) -> None:
    """The pipeline is full: it is looked at again and again."""
    spec = line(pipeline, max_open_requests=1)
    async with serving(connection, spec, replicas=0) as producer:
        first = await producer.submit(spec, HELLO)
        await connection.js_publish(subjects.request(pipeline, "raw"), b'{"prompt": "hi"}')
        consumer = f"CONSUMER.INFO.{stores.requests_stream(pipeline)}.{stores.REQUESTS_CONSUMER}"

        async def in_hand() -> bool:
            return bool((await connection.api(consumer))["num_ack_pending"])

        await eventually(in_hand, what="an orchestrator has it")
        assert (await producer.cancel(pipeline, "raw")).state is RequestState.CANCELLED
        await producer.cancel(pipeline, first.rid)
        await connection.js_publish(subjects.request(pipeline, "raw"), b'{"prompt": "hi"}')  # again: the same request
        requests = f"STREAM.INFO.{stores.requests_stream(pipeline)}"

        async def taken() -> bool:
            return (await connection.api(requests))["state"]["messages"] == 0

        await eventually(taken, what="the raw request is acknowledged")
        await cancelled(producer, pipeline, "raw")


async def test_cancelling_again_stops_what_a_canceller_left_running_when_it_died(
    connection: Connection, pipeline: str
) -> None:
    """It wrote the end and did no more."""
    spec = one_slot(pipeline)
    orders: list[Control] = []

    async def on_message(message: object) -> None:
        orders.append(codec.decode(message.data, Control))  # type: ignore[attr-defined]

    async with serving(connection, spec) as producer:
        await connection.subscribe(subjects.ctl_all(pipeline), on_message)
        await producer.submit(spec, HELLO, rid="stuck")
        channel = await producer.channel(pipeline)
        entry = await channel.performer.ledger.read("stuck")
        assert entry is not None
        await channel.performer.ledger.save(entry.record.ended(RequestState.CANCELLED), entry.revision)
        await cancelled(producer, pipeline, "stuck")
        assert any(isinstance(order, Cancel) and "stuck" in order.rids for order in orders)
        waits = await producer.submit(spec, HELLO, rid="next")
        async with asyncio.timeout(3.0):
            assert (await waits.result()).state is RequestState.DONE
