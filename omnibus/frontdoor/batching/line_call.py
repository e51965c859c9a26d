"""One line of a batch, answered by its endpoint's own code: a request over HTTP without the HTTP."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from starlette.types import Message, Scope

from omnibus.batches.batch_lines import InputLine
from omnibus.errors import BrokerError, DeadlineExceeded, OmnibusError, Overloaded
from omnibus.frontdoor.api_keys import Role
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.headers import GONE
from omnibus.frontdoor.retention import KEEP
from omnibus.frontdoor.submitting import DEFERRED

ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/images/generations",
)
"""Endpoints of batches: those that are asked, and answer, in JSON alone."""
MOST_ATTEMPTS = 3
"""Requests that a line becomes, one after the other; one whose stage had no replica did not run, and is not counted."""


@dataclass(frozen=True, slots=True)
class LineCaller:
    """The caller of a line: its tenant, and a future that is done when nobody wants the answer any more."""

    tenant: str | None
    keep: float | None
    """Seconds that its key keeps anything, at most."""
    gone: asyncio.Future[None]


async def call(app: FastAPI, line: InputLine, caller: LineCaller, rid: str) -> Response:
    """The answer of a line's endpoint, which runs it as the request of this id; made again, it attaches to that.

    Raises the OmnibusError that the endpoint answers with, and CallerGone where nobody wants it any more: then the request
    is cancelled. Cancellation leaves it running.
    """
    route = next(one for one in app.routes if isinstance(one, BodyRoute) and one.path == line.url)
    state: dict[str, object] = {
        "request_id": rid,
        "tenant": caller.tenant,
        "role": Role.USER,
        "trace": {},
        DEFERRED: True,
        KEEP: caller.keep,
    }
    scope: Scope = {
        "type": "http", "method": "POST", "path": line.url, "query_string": b"", "app": app, "state": state,
        "headers": [(b"content-type", b"application/json")], GONE: caller.gone,
    }  # fmt: skip

    async def receive() -> Message:
        return {"type": "http.request", "body": bytes(line.body)}

    return await route.answer(HttpRequest(scope, receive))


def can_begin_anew(error: OmnibusError) -> bool:
    """Whether another request may end better: the last one waited too long, or ended for want of room or in an outage. Pure."""
    had_no_chance = error.ended_request and isinstance(error, Overloaded | BrokerError) and error.retryable
    return had_no_chance or isinstance(error, DeadlineExceeded)
