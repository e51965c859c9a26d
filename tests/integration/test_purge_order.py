"""Payloads of an ended request are removed before its queued messages, among which is the event that has that repeated."""

from __future__ import annotations

import pytest

from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.errors import BrokerUnavailable, PayloadLost
from omnibus.ledger.acceptance import admit
from omnibus.ledger.performer import Performer
from omnibus.payloads.store import PayloadStore
from omnibus.pipeline.spec import PayloadRule
from omnibus.requests.advance import purge_of
from omnibus.requests.state import RequestState
from omnibus.wire import subjects
from omnibus.wire.payload import TEXT
from tests.integration.test_durable_admission import record_of
from tests.support.flow import line

pytestmark = pytest.mark.integration


async def test_event_stays_queued_when_the_payloads_of_an_ended_request_cannot_be_removed(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, performer = line(pipeline), Performer(connection, pipeline)
    await ensure_layout(connection, layout_of(spec))
    over = record_of(spec, "over").ended(RequestState.DONE)
    await performer.ledger.create(over)
    await PayloadStore(connection, pipeline).put(b"x", TEXT, rid="over", rule=PayloadRule.OBJECT)
    await connection.js_publish(subjects.deadline_event(pipeline, "over"))

    async def cut_off(_group: str) -> None:
        raise BrokerUnavailable("the orchestrator is killed here")

    with monkeypatch.context() as broken:
        broken.setattr(performer._objects, "purge_group", cut_off)
        with pytest.raises(BrokerUnavailable):
            await performer.perform([purge_of(over, stored=True)])
    assert await performer.queue.anything_queued("over")
    await performer.perform([purge_of(over, stored=True)])
    assert not await performer.queue.anything_queued("over")


async def test_payloads_are_removed_when_a_request_comes_again_whose_end_was_not_seen_through(
    connection: Connection, pipeline: str
) -> None:
    spec, performer = line(pipeline), Performer(connection, pipeline)
    await ensure_layout(connection, layout_of(spec))
    record, store = record_of(spec, "over"), PayloadStore(connection, pipeline)
    await performer.ledger.create(record.ended(RequestState.DONE))
    kept = await store.put(b"x", TEXT, rid="over", rule=PayloadRule.OBJECT)
    await admit(performer, record_of(spec, "over", nonce="other"))
    with pytest.raises(PayloadLost):
        await store.get(kept)
