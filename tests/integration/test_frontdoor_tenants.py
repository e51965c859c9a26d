"""With API keys, whose a request is: the key's, whatever its caller says."""

from __future__ import annotations

import msgspec
import pytest

from omnibus.broker.connection import Connection
from omnibus.frontdoor.api_keys import read_setting
from omnibus.frontdoor.context import Options
from omnibus.requests.record import Record
from omnibus.wire.request import Request
from tests.support.front import Front, front, omni_sim

pytestmark = pytest.mark.integration


async def test_request_is_its_keys_owners_alone_when_there_are_api_keys(connection: Connection, pipeline: str) -> None:
    options = Options(api_keys=("ours", "theirs"))
    async with front(connection, omni_sim(pipeline), options, workers=False) as front_door:
        rid = (
            await front_door.producer.submit(front_door.spec, Request(prompt="hi", tenant=read_setting("ours").tenant))
        ).rid
        theirs = {"Authorization": "Bearer theirs"}
        for method in ("GET", "DELETE"):
            refused = await front_door.http.request(method, f"/v1/requests/{rid}", headers=theirs)
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "request_not_found")
        assert (await front_door.http.get(f"/v1/requests/{rid}")).json()["status"] == "open"
        assert (await front_door.http.delete(f"/v1/requests/{rid}")).json()["status"] == "cancelled"


async def test_an_admin_sees_and_cancels_the_requests_of_all(connection: Connection, pipeline: str) -> None:
    options = Options(api_keys=("admin:chief", "theirs"))
    async with front(connection, omni_sim(pipeline), options, workers=False) as front_door:
        request = Request(prompt="hi", tenant=read_setting("theirs").tenant)
        rid = (await front_door.producer.submit(front_door.spec, request)).rid
        assert (await front_door.http.get(f"/v1/requests/{rid}")).json()["status"] == "open"
        assert (await front_door.http.delete(f"/v1/requests/{rid}")).json()["status"] == "cancelled"


async def test_callers_key_is_the_tenant_whatever_user_it_names(connection: Connection, pipeline: str) -> None:
    spec = msgspec.structs.replace(omni_sim(pipeline), max_open_per_tenant=1)
    body = {"model": pipeline, "messages": [{"role": "user", "content": "hi"}], "deadline": 0.5}
    async with front(connection, spec, Options(api_keys=("ours", "theirs")), workers=False) as front_door:
        held = await front_door.producer.submit(spec, Request(prompt="hi", tenant=read_setting("ours").tenant))
        refused = await front_door.http.post("/v1/chat/completions", json={**body, "user": "somebody new"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        taken = await front_door.http.post(
            "/v1/chat/completions", json=body, headers={"Authorization": "Bearer theirs"}
        )
        assert taken.status_code == 504, "accepted, though nobody works"
        assert read_setting("ours").tenant == (await _record(front_door, held.rid)).tenant
        assert "ours" not in read_setting("ours").tenant.removeprefix("key-")


async def _record(front_door: Front, rid: str) -> Record:
    channel = await front_door.producer.channel(front_door.spec.name)
    entry = await channel.performer.ledger.read(rid)
    assert entry is not None
    return entry.record
