"""A call that stores a job and is refused, while another one under the same idempotency key is on its way."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from omnibus.errors import Overloaded
from omnibus.frontdoor import job_submission
from tests.support.waiting import eventually


async def first_refused(
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
