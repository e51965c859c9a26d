"""`GET /v1/requests/{id}/trace`: where the time of a request went, from its record and, while it is open, its tasks."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from typing_extensions import TypedDict

from omnibus.client.request_position import timings_behind
from omnibus.client.request_trace import spans_of
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import json_response
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.endpoints.request_shapes import FailedAttempt, failed_attempt
from omnibus.frontdoor.endpoints.request_status import find_record

router = APIRouter()


class TraceSpan(TypedDict):
    """A part of a request's life, in seconds since it was accepted; a failed attempt is a moment."""

    stage: str
    what: str
    """waited, ran or failed."""
    start: float
    end: float


class TraceAnswer(TypedDict):
    """The trace of a request, as `omnibus trace --json` prints it, in the shape of the other answers."""

    id: str
    object: Literal["trace"]
    model: str
    status: str
    accepted: float
    """Seconds since the epoch, as the deadline."""
    deadline: float
    run: int
    spans: list[TraceSpan]
    """In the order of their beginnings."""
    attempts: list[FailedAttempt]


@router.get("/v1/requests/{request_id}/trace", response_model=TraceAnswer, openapi_extra=RouteAccess.USER.stated)
async def get_trace(request_id: str, http: HttpRequest, context: Context, model: str | None = None) -> Response:
    """When each stage of a request waited, ran or failed; `model` saves looking for it in every pipeline."""
    served, record = await find_record(context, http, request_id, model)
    behind = () if record.state.terminal else await timings_behind(
        context.producer.connection, served.spec.name, record.rid
    )  # fmt: skip
    spans = spans_of(served.spec, record.ticket.created, (*behind, *record.timings), record.attempts)
    answer = TraceAnswer(
        id=record.rid, object="trace", model=served.model, status=record.state.value, accepted=record.ticket.created,
        deadline=record.ticket.deadline, run=record.ticket.run,
        spans=[
            TraceSpan(stage=one.stage, what=one.what, start=round(one.start, 4), end=round(one.end, 4)) for one in spans
        ],
        attempts=[failed_attempt(attempt, served.spec) for attempt in record.attempts],
    )  # fmt: skip
    return await json_response(lambda: answer)
