"""`/v1/dead_letters`: requests whose attempts were used up, to look at, to run again under their own ids, or to drop."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from omnibus.client.dead_letter_admin import DeadLetterAdmin, DeadLetterFacts
from omnibus.errors import UnknownRequest
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import json_response, list_response
from omnibus.frontdoor.bodies import ModelName
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.endpoints.request_shapes import FailedAttempt, failed_attempt
from omnibus.frontdoor.served import Served
from omnibus.requests.record import DeadLetter, unknown
from omnibus.wire.names import check_name

router = APIRouter()


class DeadLettersQuery(BaseModel):
    """Which of them are listed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelName | None = None
    """None: of every pipeline."""
    limit: Annotated[int, Field(ge=1, le=100)] = 50


class DeadLetterObject(TypedDict):
    """A request as it failed last."""

    id: str
    object: Literal["dead_letter"]
    model: str
    state: str | None
    """How its request stands now; null when its record is gone, or another's."""
    died: float
    """Seconds since the epoch, as its acceptance."""
    created: float
    tenant: str
    run: int
    stage: str | None
    replica: str | None
    code: str | None
    message: str | None
    attempts: list[FailedAttempt]


class DeadLetterList(TypedDict):
    object: Literal["list"]
    data: list[DeadLetterObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class RetriedDeadLetter(TypedDict):
    id: str
    object: Literal["dead_letter.retried"]
    run: int
    """The number of the run that has begun."""


class DeletedDeadLetter(TypedDict):
    id: str
    object: Literal["dead_letter.deleted"]
    deleted: Literal[True]


@router.get("/v1/dead_letters", response_model=DeadLetterList, openapi_extra=RouteAccess.ADMIN.stated)
async def list_dead_letters(context: Context, query: Annotated[DeadLettersQuery, Query()]) -> Response:
    """Dead letters of all tenants, the latest first."""
    found: list[tuple[DeadLetter, Served, DeadLetterAdmin]] = []
    for served in await context.models.pipelines(query.model):
        admin = await DeadLetterAdmin.open(context.producer, served.spec)
        found += [(dead_letter, served, admin) for dead_letter in await admin.latest(query.limit + 1)]
    found.sort(key=lambda one: -one[0].died)
    shown = [_object(await admin.describe(one), served) for one, served, admin in found[: query.limit]]
    return await list_response(shown, has_more=len(found) > query.limit)


@router.post(
    "/v1/dead_letters/{request_id}/retry", response_model=RetriedDeadLetter, openapi_extra=RouteAccess.ADMIN.stated
)
async def retry_dead_letter(request_id: str, context: Context, model: str | None = None) -> Response:
    """Run its request again under its own id, with as much time as it had; 409 for one that is not failed any more."""
    run = await (await _admin_of(context, request_id, model)).retry(request_id)
    return await json_response(lambda: RetriedDeadLetter(id=request_id, object="dead_letter.retried", run=run))


@router.delete(
    "/v1/dead_letters/{request_id}", response_model=DeletedDeadLetter, openapi_extra=RouteAccess.ADMIN.stated
)
async def delete_dead_letter(request_id: str, context: Context, model: str | None = None) -> Response:
    """Remove a dead letter and the input that is kept for it, for good; 409 while its request runs again."""
    await (await _admin_of(context, request_id, model)).drop(request_id)
    return await json_response(lambda: DeletedDeadLetter(id=request_id, object="dead_letter.deleted", deleted=True))


async def _admin_of(context: FrontDoorContext, rid: str, model: str | None) -> DeadLetterAdmin:
    """That of the pipeline which has this dead letter; raises UnknownRequest."""
    check_name(rid, "request_id")
    for served in await context.models.pipelines(model):
        admin = await DeadLetterAdmin.open(context.producer, served.spec)
        try:
            await admin.dead_letter(rid)
        except UnknownRequest:
            continue
        return admin
    raise unknown(rid)


def _object(facts: DeadLetterFacts, served: Served) -> DeadLetterObject:
    return DeadLetterObject(
        id=facts.request_id, object="dead_letter", model=served.model,
        state=facts.state.value if facts.state is not None else None, died=facts.died, created=facts.created,
        tenant=facts.tenant, run=facts.run, stage=facts.stage, replica=facts.replica, code=facts.code,
        message=facts.message, attempts=[failed_attempt(attempt, served.spec) for attempt in facts.history],
    )  # fmt: skip
