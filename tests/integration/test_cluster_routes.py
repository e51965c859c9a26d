"""What the dashboard asks: the cluster now and live, the latest requests and their times, dead letters, orders to replicas."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import msgspec
import pytest
from jsonschema import Draft202012Validator

from omnibus.broker.connection import Connection
from omnibus.client.cluster_feed import EVERY, ClusterFeed, PipelineLook
from omnibus.errors import BrokerUnavailable
from omnibus.frontdoor.api_keys import read_setting
from omnibus.frontdoor.context import Options
from omnibus.frontdoor.error_answers import ErrorAnswer, error_detail
from omnibus.frontdoor.served import Served, ServedModels
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import Request
from tests.support.dying import HELLO, bury, healthy
from tests.support.front import FixedPipelines, Front, front, nobody, omni_sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
ADMIN, OURS, THEIRS = "chief", "ours", "theirs"
KEYS = Options(api_keys=(f"admin:{ADMIN}", OURS, THEIRS))


def by(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def looks(front_door: Front) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The events of the cluster, as they come."""
    async with front_door.http.stream("GET", "/v1/cluster/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        event = ""
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield event, json.loads(line.removeprefix("data: "))


def stage_of(look: dict[str, Any], stage_id: int) -> dict[str, Any]:
    (pipeline,) = look["pipelines"]
    return next(stage for stage in pipeline["stages"] if stage["stage_id"] == stage_id)


async def test_cluster_is_seen_live_with_rates_and_times(connection: Connection, pipeline: str) -> None:
    async with front(connection, omni_sim(pipeline)) as front_door:
        followed = looks(front_door)
        event, first = await anext(followed)
        assert (event, first["role"]) == ("cluster", None)
        assert {stage["name"]: stage["up"] for stage in first["pipelines"][0]["stages"]} == dict.fromkeys(
            ("writer", "painter", "speaker"), 1
        )
        assert (stage_of(first, 1)["ran_seconds"], stage_of(first, 1)["taken_rate"]) == (None, None)
        body = {"model": pipeline, "messages": [{"role": "user", "content": "a b"}], "modalities": ["text", "image"]}
        assert (await front_door.http.post("/v1/chat/completions", json=body)).status_code == 200
        async for _, look in followed:
            painter = stage_of(look, 1)
            if painter["ran_seconds"] is not None and painter["taken_rate"]:
                break
        await followed.aclose()
    assert painter["ran_seconds"] >= 0.02
    assert painter["replicas"][0]["heartbeat_age"] < 10.0
    assert look["pipelines"][0]["edges"] == [
        {"source": 0, "target": target, "stream": False, "forwarding": "orchestrator"} for target in (1, 2)
    ]
    assert stage_of(look, 2)["ran_seconds"] is None, "no sound was asked for"


async def test_events_go_on_when_the_broker_fails_behind_a_look(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = ServedModels.all, 0

    async def fails_once(self: ServedModels) -> list[Served]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise BrokerUnavailable
        return await real(self)

    async with front(connection, omni_sim(pipeline), workers=False) as front_door:
        monkeypatch.setattr(ServedModels, "all", fails_once)
        followed = looks(front_door)
        seen = [(await anext(followed)) for _ in range(3)]
        await followed.aclose()
    assert [event for event, _ in seen] == ["cluster", "error", "cluster"]
    assert seen[1][1]["error"]["code"] == BrokerUnavailable.code


def read(event: dict[str, Any]) -> dict[str, Any]:
    """The schema of an event whose data was read."""
    data = event["properties"]["data"]
    assert (data["type"], data["contentMediaType"]) == ("string", "application/json")
    return {**event, "properties": {**event["properties"], "data": data["contentSchema"]}}


async def test_events_are_as_the_document_says(connection: Connection, pipeline: str) -> None:
    """Those of a broker that answers, of a user's key, and of a broker that is away."""
    async with front(connection, omni_sim(pipeline), KEYS) as front_door:
        document = (await front_door.http.get("/openapi.json")).json()
        described = document["paths"]["/v1/cluster/events"]["get"]["responses"]["200"]["content"]
        assert list(described) == ["text/event-stream"]
        validator = Draft202012Validator(
            {
                "oneOf": list(map(read, described["text/event-stream"]["schema"]["oneOf"])),
                "components": document["components"],
            }
        )
        for key in (ADMIN, OURS):
            front_door.http.headers.update(by(key))
            event, data = await anext(looks(front_door))
            assert data["pipelines"][0]["stages"][0]["replicas"][0]["status"] == "up"
            validator.validate({"event": event, "data": data})
        failed = ErrorAnswer(error=error_detail(BrokerUnavailable("it is away")))
        validator.validate({"event": "error", "data": failed})
        for wrong in ({"event": "error", "data": data}, {"event": "cluster", "data": {}}, {"event": "x", "data": data}):
            assert not validator.is_valid(wrong)


async def test_feed_ends_for_those_who_follow_when_it_is_closed(connection: Connection, pipeline: str) -> None:
    """Else an open page would keep a front door that stops for the whole of its grace."""
    async with front(connection, omni_sim(pipeline), workers=False) as front_door:
        pipelines = FixedPipelines(front_door.spec)
        async with ClusterFeed(front_door.producer, pipelines.all, nobody) as feed:
            followed = feed.follow()
            (look,) = cast("list[PipelineLook]", await anext(followed))
            assert look.status.spec == front_door.spec
        async with asyncio.timeout(EVERY / 2):
            assert [one async for one in followed] == []


async def test_latest_requests_are_those_of_the_key_and_all_for_an_admin(connection: Connection, pipeline: str) -> None:
    async with front(connection, omni_sim(pipeline), KEYS, workers=False) as front_door:
        made = [
            (await front_door.producer.submit(front_door.spec, Request(prompt="hi", tenant=read_setting(key).tenant))).rid
            for key in (OURS, THEIRS, OURS)
        ]  # fmt: skip
        assert (await front_door.http.delete(f"/v1/requests/{made[2]}", headers=by(OURS))).status_code == 200

        async def listed(key: str, **query: str | int) -> list[tuple[str, str]]:
            answer = await front_door.http.get("/v1/requests", params=query, headers=by(key))
            assert answer.status_code == 200, answer.text
            return [(one["id"], one["status"]) for one in answer.json()["data"]]

        assert await listed(OURS) == [(made[2], "cancelled"), (made[0], "open")]
        assert await listed(THEIRS) == [(made[1], "open")]
        assert await listed(ADMIN) == [(made[2], "cancelled"), (made[1], "open"), (made[0], "open")]
        assert await listed(ADMIN, status="open", model=pipeline) == [(made[1], "open"), (made[0], "open")]
        assert await listed(ADMIN, limit=1) == [(made[2], "cancelled")]
        for path in (f"/v1/requests/{made[1]}/trace", "/v1/requests/nothing/trace"):
            assert (await front_door.http.get(path, headers=by(OURS))).status_code == 404
        wrong = await front_door.http.get("/v1/requests", params={"status": "lost"}, headers=by(OURS))
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "status")


async def test_trace_is_the_record_of_waits_and_runs(connection: Connection, pipeline: str) -> None:
    async with front(connection, omni_sim(pipeline)) as front_door:
        body = {"model": pipeline, "messages": [{"role": "user", "content": "a b"}], "modalities": ["image"]}
        rid = (await front_door.http.post("/v1/chat/completions", json=body)).headers["omnibus-request-id"]
        trace = (await front_door.http.get(f"/v1/requests/{rid}/trace")).json()
    assert (trace["id"], trace["model"], trace["status"], trace["attempts"]) == (rid, pipeline, "done", [])
    assert [(span["stage"], span["what"]) for span in trace["spans"]] == [
        (stage, what) for stage in ("writer", "painter") for what in ("waited", "ran")
    ]
    ends = [span["end"] for span in trace["spans"]]
    assert ends == sorted(ends)


async def test_dead_letter_is_listed_retried_and_dropped(connection: Connection, pipeline: str) -> None:
    spec = healthy(pipeline)
    await bury(connection, spec, "died", HELLO)
    await bury(connection, spec, "stays", HELLO)
    async with front(connection, spec) as front_door:
        letters = (await front_door.http.get("/v1/dead_letters", params={"model": pipeline})).json()["data"]
        assert [one["id"] for one in letters] == ["stays", "died"]
        assert (letters[0]["state"], letters[0]["stage"], len(letters[0]["attempts"])) == (
            "failed",
            spec.stages[0].name,
            2,
        )
        again = await front_door.http.post("/v1/dead_letters/died/retry")
        assert (again.status_code, again.json()["run"]) == (200, 2)
        assert (await front_door.producer.wait(pipeline, "died")).state == "done"
        assert (await front_door.http.delete("/v1/dead_letters/stays")).json()["deleted"] is True
        await eventually(lambda: _none_left(front_door), what="both are gone")
        gone = await front_door.http.post("/v1/dead_letters/stays/retry", params={"model": pipeline})
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "request_not_found")


async def _none_left(front_door: Front) -> bool:
    listed = await front_door.http.get("/v1/dead_letters")
    return bool(listed.json()["data"] == [])


async def test_order_to_one_replica_is_carried_out(connection: Connection, pipeline: str) -> None:
    async with front(connection, omni_sim(pipeline)) as front_door:
        meant = {"stage_id": 1, "replica": "r0"}

        async def order(name: str, body: dict[str, Any]) -> httpx.Response:
            return await front_door.http.post(f"/v1/replicas/{name}", json=body)

        async def is_paused() -> bool:
            look = (await front_door.http.get("/v1/cluster")).json()
            return bool(stage_of(look, 1)["replicas"][0]["paused"])

        drained = await order("drain", {"model": pipeline, **meant})
        assert drained.json() == {"object": "replica.ordered", "order": "drain", "stage": "painter", "replica": "r0"}
        await eventually(is_paused, what="it is drained")
        assert (await order("resume", meant)).status_code == 200
        await eventually(lambda: _not(is_paused), what="it takes tasks")
        alone = await order("restart", meant)
        assert (alone.status_code, alone.json()["error"]["message"]) == (
            400, "nobody would start this replica again: it runs without a supervisor",
        )  # fmt: skip
        unknown = await order("drain", {**meant, "replica": "r9"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "replica_not_found")
        assert (await order("drain", {**meant, "stage_id": 9})).json()["error"]["param"] == "stage_id"
        assert (await order("drain", {**meant, "stage": 1})).status_code == 400


async def _not(condition: Any) -> bool:
    return not await condition()


async def test_users_key_sees_no_hosts_and_gives_no_orders(connection: Connection, pipeline: str) -> None:
    async with front(connection, _small(omni_sim(pipeline)), KEYS) as front_door:
        user = (await front_door.http.get("/v1/cluster", headers=by(OURS))).json()
        admin = (await front_door.http.get("/v1/cluster", headers=by(ADMIN))).json()
        assert (user["role"], admin["role"]) == ("user", "admin")
        assert {stage_of(user, 0)["replicas"][0][name] for name in ("host", "pid", "reason")} == {None}
        assert stage_of(admin, 0)["replicas"][0]["host"]
        refused = [
            await front_door.http.request(method, path, headers=by(OURS), json={})
            for method, path in (("POST", "/v1/replicas/drain"), ("GET", "/v1/dead_letters"), ("DELETE", "/v1/dead_letters/a"))
        ]  # fmt: skip
        assert {one.status_code for one in refused} == {403}


def _small(spec: PipelineSpec) -> PipelineSpec:
    return msgspec.structs.replace(spec, stages=spec.stages[:1])
