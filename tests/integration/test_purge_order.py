"""The end of a request removes what it stored before what is queued, among which is the event that has a removal repeated."""

from __future__ import annotations

import pytest

from omnibus.broker.connection import Connection
from omnibus.broker.effects import Performer
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.errors import BrokerUnavailable
from omnibus.payloads.store import PayloadStore
from omnibus.pipeline.spec import PayloadRule
from omnibus.requests.effects import Purge
from omnibus.wire import subjects
from omnibus.wire.payload import TEXT
from tests.support.flow import line

pytestmark = pytest.mark.integration


async def test_event_stays_queued_when_the_payloads_of_an_ended_request_cannot_be_removed(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ensure_layout(connection, layout_of(line(pipeline)))
    performer = Performer(connection, pipeline)
    await PayloadStore(connection, pipeline).put(b"x", TEXT, rid="over", rule=PayloadRule.OBJECT)
    await connection.js_publish(subjects.deadline_event(pipeline, "over"))

    async def cut_off(_group: str) -> None:
        raise BrokerUnavailable("the orchestrator is killed here")

    with monkeypatch.context() as broken:
        broken.setattr(performer._objects, "purge_group", cut_off)
        with pytest.raises(BrokerUnavailable):
            await performer.perform([Purge("over", stored=True)])
    assert await performer.queue.anything_queued("over")
    await performer.perform([Purge("over", stored=True)])
    assert not await performer.queue.anything_queued("over")
