"""A large request goes to the first stage once; what is behind reads it in its record, and its end leaves no copy."""

from __future__ import annotations

import base64

import pytest
from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.errors import PayloadLost
from omnibus.ledger.records import Ledger
from omnibus.pipeline.route import Forwarding
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.state import RequestState
from omnibus.wire import stores
from omnibus.wire.payload import CARRIED_LIMIT
from omnibus.wire.request import Request
from tests.support.flow import line, serving, sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
LARGE = "x" * (2 * CARRIED_LIMIT)


def reading(pipeline: str, forwarding: Forwarding) -> PipelineSpec:
    """A line whose second stage says what the request says, whatever the first made of it."""
    spec = line(pipeline, forwarding)
    first, second = sim(0, outputs={"tensor": "tensor"}, size=8), spec.stages[1]
    model = "tests.support.media_stage:describe_media"
    return replace(spec, stages=(first, replace(second, engine="python", model=model)))


async def _stored(connection: Connection, stream: str, subject: str) -> bytes | None:
    found = await connection.find(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
    return base64.b64decode(found["message"]["data"]) if found is not None else None


@pytest.mark.parametrize("forwarding", Forwarding)
async def test_later_stage_has_the_request_when_its_task_does_not_carry_it(
    connection: Connection, pipeline: str, forwarding: Forwarding
) -> None:
    spec = reading(pipeline, forwarding)
    only_first = replace(spec, stages=spec.stages[:1])
    work = stores.work_stream(pipeline)
    async with serving(connection, spec, replicas=0) as producer:
        submission = await producer.submit(spec, Request(prompt=LARGE, stream=False))
        async with serving(connection, only_first, orchestrators=0):
            task = await eventually(
                lambda: _stored(connection, work, f"omni.{pipeline}.task.1.*.{submission.rid}"),
                what="the task of the second stage",
            )
        assert len(task) < CARRIED_LIMIT
        async with serving(connection, spec, orchestrators=0):
            result = await submission.result()
    assert (result.state, result.outputs[0].text) == (RequestState.DONE, LARGE)
    entry = await Ledger(connection, pipeline).read(submission.rid)
    assert entry is not None
    assert not entry.record.ticket.has_request
    assert entry.record.ticket.request.nbytes > len(LARGE)


async def test_small_request_travels_with_its_tasks(connection: Connection, pipeline: str) -> None:
    spec = reading(pipeline, Forwarding.ORCHESTRATOR)
    async with serving(connection, spec) as producer:
        result = await (await producer.submit(spec, Request(prompt="hi", stream=False))).result()
        reads = f"STREAM.INFO.KV_{stores.requests_bucket(pipeline)}"
        assert (await connection.api(reads))["state"]["last_seq"] == 2
    assert result.outputs[0].text == "hi"


async def test_request_is_lost_to_a_late_task_when_its_record_is_over_or_another(
    connection: Connection, pipeline: str
) -> None:
    spec = reading(pipeline, Forwarding.ORCHESTRATOR)
    async with serving(connection, spec, replicas=0) as producer:
        submission = await producer.submit(spec, Request(prompt=LARGE, stream=False))
        ledger, ticket = Ledger(connection, pipeline), submission.ticket.without_request()
        assert (await ledger.request(ticket)).data == submission.ticket.request.data
        with pytest.raises(PayloadLost):
            await ledger.request(replace(ticket, nonce="another"))
        await producer.cancel(pipeline, submission.rid)
        with pytest.raises(PayloadLost):
            await ledger.request(ticket)
