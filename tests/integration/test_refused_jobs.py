"""Two calls at once under one idempotency key: the one that stored the job is refused, or they ask for different things."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from omnibus.broker.connection import Connection
from omnibus.errors import BrokerUnavailable, Overloaded
from omnibus.files.file_store import FileStore
from omnibus.frontdoor import job_submission
from omnibus.frontdoor.job_records import JobRecords
from omnibus.frontdoor.video_jobs.video_store import VideoStore
from omnibus.ledger.performer import Performer
from tests.support.filming_stages import films
from tests.support.front import Front, front, omni_sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration
_OF_EACH_KIND = pytest.mark.parametrize(
    ("path", "body"), [("/v1/videos", {"prompt": "once"}), ("/v1/responses", {"input": "once", "background": True})]
)


async def _completed(door: Front, address: str) -> None:
    """Return when the job at this address is completed, which is long before its deadline."""

    async def is_completed() -> bool:
        return bool((await door.http.get(address)).raise_for_status().json()["status"] == "completed")

    await eventually(is_completed, 15.0, what="the job is completed")


async def _first_refused(
    monkeypatch: pytest.MonkeyPatch, http: httpx.AsyncClient, path: str, body: dict[str, Any], headers: dict[str, str]
) -> tuple[httpx.Response, httpx.Response]:
    """The answers to the same call made twice; the first is refused when the second has found its job."""
    calls, real, looks_again = list[str](), job_submission.send, asyncio.Event()
    found = job_submission._stays

    async def send(context: Any, request: Any, prepared: Any) -> Any:
        calls.append(prepared.rid)
        if len(calls) == 1:
            await asyncio.wait_for(looks_again.wait(), 5.0)
            await asyncio.sleep(0.2)
            raise Overloaded("there is no room")
        return await real(context, request, prepared)

    async def submitted(*given: Any) -> Any:
        looks_again.set()
        return await found(*given)

    monkeypatch.setattr(job_submission, "send", send)
    monkeypatch.setattr(job_submission, "_stays", submitted)
    first = asyncio.create_task(http.post(path, json=body, headers=headers))
    await eventually(lambda: calls, what="the first call submits its request")
    second = await http.post(path, json=body, headers=headers)
    return await first, second


@_OF_EACH_KIND
async def test_a_repeat_makes_the_job_whose_first_call_is_refused_in_the_same_moment(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    spec = films(pipeline) if path == "/v1/videos" else omni_sim(pipeline)
    async with front(connection, spec, videos=True, responses=True) as door:
        key = {"Idempotency-Key": pipeline}
        first, second = await _first_refused(monkeypatch, door.http, path, body, key)
        assert (first.status_code, second.status_code) == (429, 200)
        await _completed(door, f"{path}/{second.json()['id']}")
        again = await door.http.post(path, json=body, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, second.json()["id"])


@_OF_EACH_KIND
async def test_a_repeat_has_the_job_run_whose_first_call_ended_between_its_record_and_its_task(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    real, calls = Performer.open, 0

    async def cut_off(self: Performer, record: Any) -> Any:
        nonlocal calls
        calls += 1
        opened = await real(self, record)
        if calls == 1:
            raise BrokerUnavailable
        return opened

    monkeypatch.setattr(Performer, "open", cut_off)
    spec = films(pipeline) if path == "/v1/videos" else omni_sim(pipeline)
    async with front(connection, spec, videos=True, responses=True) as door:
        key = {"Idempotency-Key": pipeline}
        first, second = [await door.http.post(path, json=body, headers=key) for _ in range(2)]
        assert (first.status_code, second.status_code) == (503, 200)
        await _completed(door, f"{path}/{second.json()['id']}")
        again = await door.http.post(path, json=body, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, second.json()["id"])
    assert again.headers["x-request-id"] == second.headers["x-request-id"]


async def test_the_same_call_with_another_trace_is_the_same_response(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _slow_queue(monkeypatch, 0.3, 0.3)
    async with front(connection, omni_sim(pipeline), responses=True) as door:
        body = {"input": "once", "background": True}
        traces = [f"00-{number:032x}-{number:016x}-01" for number in (7, 8)]
        headers = [{"Idempotency-Key": pipeline, "traceparent": trace} for trace in traces]
        answers = await asyncio.gather(*(door.http.post("/v1/responses", json=body, headers=one) for one in headers))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert len({answer.json()["id"] for answer in answers}) == 1


def _slow_queue(monkeypatch: pytest.MonkeyPatch, *delays: float) -> None:
    """The jobs of two calls are as many seconds on their way to the queue, before there is a record of either."""
    real, left = JobRecords.enqueue, [*delays]

    async def enqueue(self: JobRecords[Any], record: Any, subject: str) -> None:
        await asyncio.sleep(left.pop(0))
        await real(self, record, subject)

    monkeypatch.setattr(JobRecords, "enqueue", enqueue)


async def _both(door: Front, path: str, bodies: list[dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """The job of the call that is accepted, and its id; the other one is a conflict."""
    key = {"Idempotency-Key": door.spec.name}
    answers = await asyncio.gather(*(door.http.post(path, json=body, headers=key) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    conflict = next(answer.json()["error"] for answer in answers if answer.status_code == 409)
    assert (conflict["code"], conflict["param"]) == ("request_conflict", "Idempotency-Key")
    return next((body, one.json()["id"]) for body, one in zip(bodies, answers, strict=True) if one.status_code == 200)


async def test_video_keeps_its_own_input_when_another_is_asked_for_under_its_key_at_once(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _slow_queue(monkeypatch, 0.3, 0.3)
    async with front(connection, films(pipeline), videos=True) as door:
        body, video_id = await _both(door, "/v1/videos", [{"prompt": prompt} for prompt in ("a cat", "a dog")])
        videos = VideoStore(connection, FileStore(connection, quota=1 << 30))
        record = await videos.find(None, video_id)
        assert (record.prompt, (await videos.request(record)).text()) == (body["prompt"], body["prompt"])


async def test_response_keeps_its_own_input_when_another_is_asked_for_under_its_key_at_once(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _slow_queue(monkeypatch, 0.6, 0.1)
    async with front(connection, omni_sim(pipeline), responses=True) as door:
        bodies = [{"input": text, "background": True} for text in ("a cat", "a dog")]
        body, response_id = await _both(door, "/v1/responses", bodies)
        items = (await door.http.get(f"/v1/responses/{response_id}/input_items")).json()["data"]

        async def answered() -> str:
            return (await door.openai.responses.retrieve(response_id)).output_text

        assert [part["text"] for item in items for part in item["content"]] == [body["input"]]
        assert await eventually(answered, 20.0, what="it is answered") == body["input"]
