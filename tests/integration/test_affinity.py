"""Affinity of requests over a real broker: they stick to a replica, and move when it dies, whoever publishes them."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from msgspec.structs import replace as with_fields

from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.client.producer import Producer
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.state import RequestState
from omnibus.wire import subjects
from omnibus.wire.request import Request, encode_request
from tests.support.directed import lane_log, one_stage, orchestrator, replica
from tests.support.flow import line, serving
from tests.support.front import front
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
KEYS = [f"chat-{number}" for number in range(8)]


async def ask(producer: Producer, spec: PipelineSpec, key: str, rid: str) -> None:
    submission = await producer.submit(spec, Request(prompt="hi", affinity=key), rid=rid)
    assert (await submission.result()).state is RequestState.DONE


async def test_requests_stick_to_a_replica_when_they_have_one_key(connection: Connection, pipeline: str) -> None:
    """Parity: affinity goes before policy; here that is round-robin, which would take turns."""
    spec = one_stage(pipeline)
    async with lane_log(connection, pipeline) as log, serving(connection, spec, replicas=3) as producer:
        for key in KEYS:
            await asyncio.gather(*(ask(producer, spec, key, f"{key}-{number}") for number in range(5)))
        homes = {key: {log.lanes_of(f"{key}-{number}")[0] for number in range(5)} for key in KEYS}
        assert all(len(lanes) == 1 for lanes in homes.values()), homes
        assert len(set.union(*homes.values())) > 1, "not all to the same one"


async def test_publishers_agree_when_they_never_spoke(connection: Connection, pipeline: str) -> None:
    """A client, a worker that forwards directly, an orchestrator and a raw producer choose alike."""
    spec = line(pipeline)
    spec = with_fields(spec, stages=tuple(with_fields(stage, lb_policy="random") for stage in spec.stages))
    async with (
        lane_log(connection, pipeline) as log,
        serving(connection, spec, replicas=3, orchestrators=2) as producer,
        Producer(connection) as another,
    ):
        for key in KEYS:
            await ask(producer, spec, key, f"a-{key}")
            await ask(another, spec, key, f"b-{key}")
            raw = Request(prompt="hi", affinity=key)
            await connection.js_publish(subjects.request(pipeline, f"c-{key}"), encode_request(raw))
            await eventually(lambda rid=f"c-{key}": len(log.lanes_of(rid)) == 2, what="it was published to both stages")
        for key in KEYS:
            lanes = {lane for _, lane, rid in log.tasks if rid.endswith(key)}
            assert len(lanes) == 1, (key, lanes)


async def test_only_the_keys_of_a_dead_replica_move(connection: Connection, pipeline: str) -> None:
    spec = one_stage(pipeline)
    await ensure_layout(connection, layout_of(spec))
    async with (
        orchestrator(connection, spec),
        Producer(connection) as producer,
        lane_log(connection, pipeline) as log,
        replica(connection, spec),
        replica(connection, spec),
    ):
        async with replica(connection, spec, dies=True) as dying:
            await asyncio.gather(*(ask(producer, spec, key, f"before-{key}") for key in KEYS))
            dead = dying.record.replica
        before = {key: log.lanes_of(f"before-{key}")[0] for key in KEYS}
        assert dead in before.values()
        number = 0

        async def nobody_asks_the_dead() -> bool:
            nonlocal number
            number += 1
            await asyncio.gather(*(ask(producer, spec, key, f"after{number}-{key}") for key in KEYS))
            return dead not in {log.lanes_of(f"after{number}-{key}")[0] for key in KEYS}

        await eventually(nobody_asks_the_dead, 10)
        after = {key: log.lanes_of(f"after{number}-{key}")[0] for key in KEYS}
        assert {key for key in KEYS if after[key] != before[key]} == {key for key in KEYS if before[key] == dead}


async def test_key_given_over_http_sticks_or_is_refused_by_name(connection: Connection, pipeline: str) -> None:
    spec = with_fields(one_stage(pipeline), deadline=20.0)
    async with front(connection, spec) as front_door, lane_log(connection, pipeline) as log:
        body = {"model": pipeline, "messages": [{"role": "user", "content": "hi"}]}
        answered = await front_door.http.post("/v1/chat/completions", json={**body, "affinity": "chat-1"})
        assert answered.status_code == 200
        assert Counter(log.lanes(0)) == {"r0": 1}
        for param, value in (("affinity", "a b"), ("mm_processor_kwargs", {"fps": 1})):
            refused = await front_door.http.post("/v1/chat/completions", json={**body, param: value})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
