"""`GET /v1/requests`: the latest requests, open ones and ended ones; with API keys, those of the key's owner, or of all for an
admin."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import list_response
from omnibus.frontdoor.bodies import ModelName
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.endpoints.request_status import owner_of
from omnibus.frontdoor.error_answers import ErrorDetail, error_detail
from omnibus.frontdoor.served import Served
from omnibus.ledger.records import Ledger
from omnibus.requests.record import Record
from omnibus.requests.state import RequestState

router = APIRouter()


class RequestsQuery(BaseModel):
    """Which of the requests are listed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelName | None = None
    """None: of every pipeline."""
    status: RequestState | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 50


class RequestPlace(TypedDict):
    """A replica that has the request in hand."""

    stage: str
    replica: str


class LatestRequest(TypedDict):
    """A request of the list."""

    id: str
    object: Literal["request"]
    model: str
    status: str
    """open, done, failed, cancelled or expired."""
    created: float
    """Seconds since the epoch."""
    seconds: float | None
    """From its acceptance to its last output or failed attempt; null where it has none yet."""
    lane: str
    run: int
    modalities: list[str]
    """Modalities of the outputs that it has delivered."""
    tenant: str | None
    """Null but for an admin's eyes."""
    at: list[RequestPlace]
    """Where it is now, as the last heartbeats of the replicas have it."""
    error: ErrorDetail | None
    retryable: bool
    """Whether its dead letter is kept."""


class LatestRequests(TypedDict):
    object: Literal["list"]
    data: list[LatestRequest]
    first_id: str | None
    last_id: str | None
    has_more: bool


@router.get("/v1/requests", response_model=LatestRequests, openapi_extra=RouteAccess.USER.stated)
async def list_requests(http: HttpRequest, context: Context, query: Annotated[RequestsQuery, Query()]) -> Response:
    """The latest requests, the newest first, among the last 1,024 changes of each pipeline's records."""
    owner = owner_of(http)
    served = await context.models.pipelines(query.model)
    found = [item for one in served for item in await _listed(context, one, query, owner)]
    found.sort(key=lambda item: -item["created"])
    return await list_response(found[: query.limit], has_more=len(found) > query.limit)


async def _listed(
    context: FrontDoorContext, served: Served, query: RequestsQuery, owner: str | None
) -> list[LatestRequest]:
    def is_wanted(record: Record) -> bool:
        return owner in (None, record.tenant) and query.status in (None, record.state)

    records = await Ledger(context.producer.connection, served.spec.name).latest(query.limit + 1, is_wanted)
    places = await _places(context, served)
    return [_item(record, served, places.get(record.rid, []), shows_tenant=owner is None) for record in records]


async def _places(context: FrontDoorContext, served: Served) -> dict[str, list[RequestPlace]]:
    places: dict[str, list[RequestPlace]] = {}
    for replica in await context.replicas(served.spec):
        for rid, _ in replica.claims:
            place = RequestPlace(stage=served.spec.stage_name(replica.stage_id), replica=replica.replica)
            places.setdefault(rid, []).append(place)
    return places


def _item(record: Record, served: Served, at: list[RequestPlace], *, shows_tenant: bool) -> LatestRequest:
    ticket, failure = record.ticket, record.failure
    moments = [*(timing.finished for timing in record.timings), *(attempt.at for attempt in record.attempts)]
    is_open = not record.state.terminal
    return LatestRequest(
        id=record.rid, object="request", model=served.model, status=record.state.value,
        created=round(ticket.created, 3),
        seconds=round(max(moments) - ticket.created, 4) if moments and not is_open else None,
        lane=ticket.lane, run=ticket.run,
        modalities=[one.modality for output in record.outputs.values() for one in (output, *output.also)],
        tenant=record.tenant if shows_tenant else None, at=at if is_open else [],
        error=error_detail(failure.exception()) if failure is not None else None, retryable=record.dead,
    )  # fmt: skip
