"""Two calls at once under one idempotency key, of which the one that stored the job is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from omnibus.broker.connection import Connection
from omnibus.errors import Overloaded
from omnibus.frontdoor import job_submission
from tests.support.filming_stages import films
from tests.support.front import front, omni_sim
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


async def _first_refused(
    monkeypatch: pytest.MonkeyPatch, http: httpx.AsyncClient, path: str, body: dict[str, Any], headers: dict[str, str]
) -> tuple[httpx.Response, httpx.Response]:
    """The answers to the same call made twice; the first is refused when the second has found its job."""
    calls, real, looks_again = list[str](), job_submission.send, asyncio.Event()
    found = job_submission._submitted

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
    monkeypatch.setattr(job_submission, "_submitted", submitted)
    first = asyncio.create_task(http.post(path, json=body, headers=headers))
    await eventually(lambda: calls, what="the first call submits its request")
    second = await http.post(path, json=body, headers=headers)
    return await first, second


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/videos", {"prompt": "once"}), ("/v1/responses", {"input": "once", "background": True})]
)
async def test_a_repeat_makes_the_job_whose_first_call_is_refused_in_the_same_moment(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    spec = films(pipeline) if path == "/v1/videos" else omni_sim(pipeline)
    async with front(connection, spec, videos=True, responses=True) as door:
        key = {"Idempotency-Key": pipeline}
        first, second = await _first_refused(monkeypatch, door.http, path, body, key)
        assert (first.status_code, second.status_code) == (429, 200)

        async def is_completed() -> bool:
            job = await door.http.get(f"{path}/{second.json()['id']}")
            return bool(job.raise_for_status().json()["status"] == "completed")

        await eventually(is_completed, 20.0, what="the job is completed")
        again = await door.http.post(path, json=body, headers=key)
    assert (again.status_code, again.json()["id"]) == (200, second.json()["id"])
