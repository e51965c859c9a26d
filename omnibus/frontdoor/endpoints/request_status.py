"""`GET` and `DELETE /v1/requests/{id}`: any request by its id, however it was made, now or as events until its end; with API
keys, those of the key's owner, or of all for an admin."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Header, Query, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict

from omnibus.client.request_events import Result
from omnibus.client.stream_cursor import StreamCursor
from omnibus.errors import InvalidRequest, UnknownRequest
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import json_response, size_of
from omnibus.frontdoor.api_keys import Role
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.endpoints.request_shapes import RequestAnswer, request_answer
from omnibus.frontdoor.endpoints.request_stream import event_stream
from omnibus.frontdoor.openapi_document import EVENTS, answers_with
from omnibus.frontdoor.served import Served
from omnibus.requests.record import Record, unknown
from omnibus.wire.names import check_name

router = APIRouter()
T = TypeVar("T")


class RequestQuery(BaseModel):
    """How a request is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    """Saves looking for it in every pipeline."""
    stream: bool = False
    starting_after: str | None = None
    """The id of the event behind which the stream begins."""


@router.get(
    "/v1/requests/{request_id}",
    response_model=RequestAnswer,
    responses=answers_with(EVENTS),
    openapi_extra=RouteAccess.USER.stated,
)
async def get_request(
    request_id: str, http: HttpRequest, context: Context, query: Annotated[RequestQuery, Query()],
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:  # fmt: skip
    """Where a request is, and what it has delivered; with `stream=true` its events until it has ended, those behind
    `starting_after`, or behind `Last-Event-ID`, which clients send by themselves that connect again."""
    if not query.stream:
        if query.starting_after is not None:
            raise InvalidRequest("only a stream starts after an event: set stream=true", param="starting_after")
        return await _answer(context, http, request_id, query.model, context.producer.result)
    served, submission = await find_request(context, http, request_id, query.model, context.producer.attach)
    after, param = (last_event_id, "Last-Event-ID") if last_event_id else (query.starting_after, "starting_after")
    return event_stream(context, served, submission, StreamCursor(request_id, after, param=param))


@router.delete("/v1/requests/{request_id}", openapi_extra=RouteAccess.USER.stated)
async def cancel_request(request_id: str, http: HttpRequest, context: Context, model: str | None = None) -> Response:
    """Cancel a request; the answer shows it in its terminal state, which is another when it ended before."""
    return await _answer(context, http, request_id, model, context.producer.cancel)


async def _answer(
    context: FrontDoorContext, http: HttpRequest, rid: str, model: str | None, ask: Callable[..., Awaitable[Result]]
) -> Response:
    served, result = await find_request(context, http, rid, model, ask)
    return await json_response(lambda: request_answer(result, served.spec, served.model), size_of(result.outputs))


async def find_request(
    context: FrontDoorContext, http: HttpRequest, rid: str, model: str | None, ask: Callable[..., Awaitable[T]]
) -> tuple[Served, T]:
    """The pipeline that has a request of the caller, and what it answers; raises UnknownRequest."""
    check_name(rid, "request_id")
    owner = owner_of(http)
    for served in await context.models.pipelines(model):
        try:
            return served, await ask(served.spec.name, rid, tenant=owner)
        except UnknownRequest:
            continue
    raise unknown(rid)


async def find_record(
    context: FrontDoorContext, http: HttpRequest, rid: str, model: str | None
) -> tuple[Served, Record]:
    """The pipeline that has a request of the caller, and its record; its outputs are not read. Raises UnknownRequest."""

    async def record_of(pipeline: str, rid: str, *, tenant: str | None) -> Record:
        return (await (await context.producer.channel(pipeline)).entry(rid, tenant)).record

    return await find_request(context, http, rid, model, record_of)


def owner_of(http: HttpRequest) -> str | None:
    """The tenant whose requests the caller may see; None: those of all, for an admin, and where no keys are asked for."""
    return None if http.state.role is Role.ADMIN else http.state.tenant
