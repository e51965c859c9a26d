"""The order of service when there is more to do than slots: other tenants pass a flood, batch waits without starving."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time

import msgspec
import pytest

from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.client.producer import Producer
from omnibus.errors import Overloaded
from omnibus.ledger import overload
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.requests.state import RequestState
from omnibus.wire.request import Request
from tests.support.flow import serving, sim

pytestmark = pytest.mark.integration
FLOOD, ASKED = 240, 12


def pipeline_of(name: str, slots: int, latency: float, **fields: object) -> PipelineSpec:
    stage = StageSpec(
        stage_id=0, name="s0", engine="sim", slots=slots, final_output=True, final_output_type="text",
        engine_args={"latency": latency},
    )  # fmt: skip
    return PipelineSpec(name=name, stages=(stage,), deadline=60.0, heartbeat_timeout=2.0, **fields)  # type: ignore[arg-type]


async def seconds_of(producer: Producer, spec: PipelineSpec, tenant: str) -> list[float]:
    """How long each of a few requests takes, one after the other."""
    taken = []
    for _ in range(ASKED):
        began = time.monotonic()
        await (await producer.submit(spec, Request(prompt="hi", tenant=tenant, stream=False))).result()
        taken.append(time.monotonic() - began)
    return taken


async def test_latency_of_a_tenant_is_left_alone_when_another_floods_the_pipeline(
    connection: Connection, pipeline: str
) -> None:
    """The flood is three seconds of work: behind it, each request would wait for what is left of that."""
    spec = pipeline_of(pipeline, slots=4, latency=0.05)
    async with serving(connection, spec) as producer:
        alone = await seconds_of(producer, spec, "b")
        flood = Request(prompt="hi", tenant="a", stream=False)
        await asyncio.gather(*[producer.submit(spec, flood) for _ in range(FLOOD)])
        flooded = await seconds_of(producer, spec, "b")
        channel = await producer.channel(pipeline)
        assert channel.open_requests.count("a") > FLOOD / 4, "the flood lasted"
    assert statistics.median(flooded) < 3 * statistics.median(alone)
    assert max(flooded) < max(alone) + 1.0


async def test_share_of_a_tenant_is_in_the_first_lane_and_the_rest_in_the_overflow(
    connection: Connection, pipeline: str
) -> None:
    spec = pipeline_of(pipeline, slots=1, latency=0.0, tenant_share=2, lanes=("interactive", "batch"))
    async with serving(connection, spec, replicas=0) as producer:
        lanes = []
        for number, lane in enumerate(("batch", *3 * ("interactive",))):
            submission = await producer.submit(spec, Request(prompt="hi", lane=lane), rid=f"r{number}")  # type: ignore[arg-type]
            lanes.append(submission._record.ticket.lane)
        assert lanes == ["batch", "interactive", "interactive", "overflow"]
        await producer.cancel(pipeline, "r1")
        again = await producer.submit(spec, Request(prompt="hi", tenant="default"), rid="r3")
        assert (again.attached, again._record.ticket.lane) == (True, "overflow")


async def test_batch_gets_every_eighth_slot_when_interactive_saturates_the_stage(
    connection: Connection, pipeline: str
) -> None:
    spec = pipeline_of(pipeline, slots=1, latency=0.0, tenant_share=None, lanes=("interactive", "batch"))
    await ensure_layout(connection, layout_of(spec))
    async with Producer(connection) as early:
        for lane in ("batch", "interactive"):
            wish = Request(prompt="hi", lane=lane, stream=False)  # type: ignore[arg-type]
            await asyncio.gather(*[early.submit(spec, wish, rid=f"{lane}-{number}") for number in range(64)])
        async with serving(connection, spec) as producer:
            started = {}
            for lane in ("interactive", "batch"):
                for number in range(64):
                    rid = f"{lane}-{number}"
                    started[rid] = (await early.wait(pipeline, rid)).timings[0].started
            assert producer is not early
    order = [rid.partition("-")[0] for rid in sorted(started, key=started.__getitem__)]
    assert 6 <= order[:64].count("batch") <= 12, "about every eighth"
    gaps = [index for index, lane in enumerate(order[:64]) if lane == "batch"]
    assert max(b - a for a, b in itertools.pairwise(gaps)) <= 16, "and none waits much longer"
    assert set(order[80:]) == {"batch"}, "interactive was done first"


async def test_bound_of_a_tenant_is_exact_when_many_ask_at_once(connection: Connection, pipeline: str) -> None:
    spec = PipelineSpec(name=pipeline, stages=(sim(0, final="text"),), max_open_per_tenant=5, deadline=20.0)
    async with serving(connection, spec, replicas=0) as producer:
        asked = await asyncio.gather(
            *[producer.submit(spec, Request(prompt="hi")) for _ in range(20)], return_exceptions=True
        )
    refused = [answer for answer in asked if isinstance(answer, Overloaded)]
    assert (len(refused), len(asked)) == (15, 20)


async def test_bound_of_a_pipeline_holds_when_the_queue_is_read_while_many_are_being_admitted(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overload, "_FRESH", 0.0)  # each reads the queue, where those before it are not yet
    spec = pipeline_of(pipeline, slots=1, latency=0.0, max_open_requests=20, tenant_share=None)
    async with serving(connection, spec, replicas=0) as producer:
        flood = [producer.submit(spec, Request(prompt="hi")) for _ in range(60)]
        asked = await asyncio.gather(*flood, return_exceptions=True)
        admitted = sum(not isinstance(answer, BaseException) for answer in asked)
        assert 10 <= admitted <= 20
        assert all(isinstance(answer, Overloaded) for answer in asked if isinstance(answer, BaseException))


async def test_bound_of_a_pipeline_holds_when_many_ask_while_an_old_reading_is_renewed(
    connection: Connection, pipeline: str
) -> None:
    spec = pipeline_of(pipeline, slots=1, latency=0.0, max_open_requests=20, tenant_share=None)
    async with serving(connection, spec, replicas=0) as producer:
        for _ in range(20):
            await producer.submit(spec, Request(prompt="hi"))
        await asyncio.sleep(2 * overload._FRESH)  # the age that has it read again
        asked = await asyncio.gather(
            *[producer.submit(spec, Request(prompt="hi")) for _ in range(40)], return_exceptions=True
        )
        assert all(isinstance(answer, Overloaded) for answer in asked)


async def test_others_are_let_in_when_a_tenant_takes_all_the_room_that_it_is_given(
    connection: Connection, pipeline: str
) -> None:
    spec = pipeline_of(pipeline, slots=1, latency=0.0, max_open_requests=20, tenant_share=2)
    async with serving(connection, spec, replicas=0) as producer:
        for _ in range(18):
            await producer.submit(spec, Request(prompt="hi", tenant="loud"))
        with pytest.raises(Overloaded, match="18 open requests"):
            await producer.submit(spec, Request(prompt="hi", tenant="loud"))
        for tenant in ("quiet", "silent"):
            await producer.submit(spec, Request(prompt="hi", tenant=tenant))


async def test_refusal_says_how_long_it_takes_until_there_is_room(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline, slots=1, latency=0.06)
    full = msgspec.structs.replace(spec, max_open_requests=1)
    async with serving(connection, spec) as producer:
        flood = Request(prompt="hi", stream=False)
        await asyncio.gather(*[producer.submit(spec, flood) for _ in range(45)])
        told: list[tuple[float, float]] = []
        async with asyncio.timeout(30.0):
            while True:
                await asyncio.sleep(0.1)  # the caller's own patience
                try:
                    await producer.submit(full, flood)
                    break
                except Overloaded as refused:
                    told.append((time.monotonic(), refused.retry_after))
    when, wait = next((when, wait) for when, wait in told if when > told[0][0] + 1.0)
    took = told[-1][0] - when
    assert wait > 1.0, "more than the least that anybody is told"
    assert took / 2 < wait < took * 2


async def test_refusal_asks_for_a_second_when_there_is_no_pace_to_go_by(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline, slots=1, latency=0.0, max_open_requests=2)
    async with serving(connection, spec, replicas=0) as producer:
        for _ in range(2):
            await producer.submit(spec, Request(prompt="hi"))
        with pytest.raises(Overloaded) as at_first:
            await producer.submit(spec, Request(prompt="hi"))
        await asyncio.sleep(0.3)  # the caller comes again, and nothing has ended
        with pytest.raises(Overloaded) as later:
            await producer.submit(spec, Request(prompt="hi"))
    assert (at_first.value.retry_after, later.value.retry_after) == (1.0, 1.0)


async def test_place_of_a_request_is_free_when_the_notice_of_its_end_was_lost(
    connection: Connection, pipeline: str
) -> None:
    spec = PipelineSpec(name=pipeline, stages=(sim(0, final="text"),), max_open_per_tenant=1, deadline=20.0)
    async with serving(connection, spec, replicas=0) as producer:
        submission = await producer.submit(spec, Request(prompt="hi"))
        ledger = (await producer.channel(pipeline)).performer.ledger
        entry = await ledger.read(submission.rid)
        assert entry is not None
        await ledger.save(entry.record.ended(RequestState.CANCELLED), entry.revision)
        with pytest.raises(Overloaded):
            await producer.submit(spec, Request(prompt="hi"))
        await producer.result(pipeline, submission.rid)
        await producer.submit(spec, Request(prompt="hi"))
