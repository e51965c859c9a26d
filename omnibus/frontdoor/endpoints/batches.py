"""`/v1/batches`: files of requests, which run while nothing more urgent does, and whose answers become files."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from fastapi import APIRouter, Query, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from omnibus.batches.batch_record import BatchRecord, BatchStatus, window_seconds
from omnibus.errors import InvalidRequest, Overloaded
from omnibus.files.file_record import UnknownFile
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import json_response, list_response
from omnibus.frontdoor.batching.line_call import ENDPOINTS
from omnibus.frontdoor.bodies import DEFAULT_TENANT, Body, Metadata
from omnibus.frontdoor.body_route import BodyRoute, fingerprint
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.endpoints.user_files import LONGEST, SHORTEST
from omnibus.frontdoor.idempotency_keys import key_conflict, request_key
from omnibus.frontdoor.retention import KEEP, lifetime

router = APIRouter(route_class=BodyRoute)

MOST_BYTES = 200 * 1024 * 1024
"""Bytes of an input."""
MOST_OPEN = 16
"""Batches that a tenant has open; half of what one front door drives, so that others have their turn."""
_RETRY_AFTER = 60.0
_KEYED = "/v1/batches"
"""Stands for the pipeline in the token of an idempotency key: batches have none."""


class OutputExpiry(Body):
    """How long the files of a batch are kept, once they are written."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=SHORTEST, le=LONGEST)]


class BatchBody(Body):
    """A batch of the requests in a file."""

    input_file_id: str
    endpoint: str
    completion_window: str
    """Time after which what has no answer expires: a number and s, m, h or d; at most 7 days."""
    metadata: Metadata | None = None
    output_expires_after: OutputExpiry | None = None


class BatchQuery(BaseModel):
    """Which of the batches are listed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: str | None = None
    """The id of the batch behind which the list begins."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class RequestCounts(TypedDict):
    total: int
    completed: int
    failed: int


class BatchError(TypedDict):
    code: str
    message: str
    line: int | None
    param: str | None


class BatchErrors(TypedDict):
    object: Literal["list"]
    data: list[BatchError]


class CachedTokens(TypedDict):
    cached_tokens: int


class ReasoningTokens(TypedDict):
    reasoning_tokens: int


class BatchUsage(TypedDict):
    """Tokens of the answers that succeeded."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class BatchObject(TypedDict):
    """A batch. Times are seconds since the epoch; those of states that it did not come to are None."""

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None
    usage: NotRequired[BatchUsage]


class BatchList(TypedDict):
    object: Literal["list"]
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


@router.post("/v1/batches", response_model=BatchObject, openapi_extra=RouteAccess.USER.stated)
async def create_batch(body: BatchBody, http: HttpRequest, context: Context) -> Response:
    """Queue the requests of a file; its lines are checked once a runner has it.

    Under an idempotency key it is one batch, however often it is asked for.
    """
    if body.endpoint not in ENDPOINTS:
        raise InvalidRequest(f"endpoint must be one of {', '.join(ENDPOINTS)}", param="endpoint")
    store, tenant = context.batches, http.state.tenant
    key = request_key(http, tenant or DEFAULT_TENANT, _KEYED)
    shape = await fingerprint(http) if key else ""
    batch_id = await store.new_id(key)
    record = await store.known(tenant, batch_id) if key else None
    if record is None:
        record = await store.create(await _new_batch(context, http, body, batch_id, shape))
    if record.fingerprint != shape:
        raise key_conflict("batch")
    return await json_response(lambda: batch_object(record))


async def _new_batch(
    context: FrontDoorContext, http: HttpRequest, body: BatchBody, batch_id: str, shape: str
) -> BatchRecord:
    """The record of a batch that may run; raises InvalidRequest naming the field, QuotaExceeded, Overloaded."""
    seconds, store, tenant = window_seconds(body.completion_window), context.batches, http.state.tenant
    kept = body.output_expires_after
    try:
        file = await context.files.find(tenant, body.input_file_id)
    except UnknownFile as error:
        raise InvalidRequest(error.message, param="input_file_id") from error
    if file.purpose != "batch":
        raise InvalidRequest("the file's purpose is not batch", param="input_file_id")
    if file.nbytes > MOST_BYTES:
        raise InvalidRequest(f"the file has {file.nbytes} bytes, and may have {MOST_BYTES}", param="input_file_id")
    now = store.clock.now()
    if file.expires < now + seconds:
        raise InvalidRequest("the file expires before the completion window is over", param="input_file_id")
    await context.files.check_room(tenant)
    if await store.open_of(tenant) >= MOST_OPEN:
        raise Overloaded(f"{MOST_OPEN} batches are open, the most at once: try again later", retry_after=_RETRY_AFTER)
    return BatchRecord(
        id=batch_id, tenant=tenant, endpoint=body.endpoint, input_file_id=file.id,
        completion_window=body.completion_window, metadata=body.metadata, created=now, expires=now + seconds,
        fingerprint=shape, output_lifetime=lifetime(
            http.scope, context.options.keep_batch_outputs, None if kept is None else float(kept.seconds),
            param="output_expires_after.seconds",
        ), keep=http.scope["state"].get(KEEP),
    )  # fmt: skip


@router.get("/v1/batches", response_model=BatchList, openapi_extra=RouteAccess.USER.stated)
async def list_batches(http: HttpRequest, context: Context, query: Annotated[BatchQuery, Query()]) -> Response:
    """The caller's batches, the newest first."""
    page = await context.batches.page(http.state.tenant, after=query.after, limit=query.limit)
    return await list_response([batch_object(record) for record in page.records], has_more=page.has_more)


@router.get("/v1/batches/{batch_id}", response_model=BatchObject, openapi_extra=RouteAccess.USER.stated)
async def get_batch(batch_id: str, http: HttpRequest, context: Context) -> Response:
    """A batch: its state, how many lines have their answer, and its files once they are written."""
    record = await context.batches.find(http.state.tenant, batch_id)
    return await json_response(lambda: batch_object(record))


@router.post("/v1/batches/{batch_id}/cancel", response_model=BatchObject, openapi_extra=RouteAccess.USER.stated)
async def cancel_batch(batch_id: str, http: HttpRequest, context: Context) -> Response:
    """Cancel a batch: open lines are cancelled, and the files are written of what was answered."""
    store = context.batches
    record = await store.change(http.state.tenant, batch_id, lambda one: one.cancelled(store.clock.now()))
    return await json_response(lambda: batch_object(record))


def batch_object(record: BatchRecord) -> BatchObject:
    """A record as a body."""
    progress, faults = record.progress, record.faults

    def at(status: BatchStatus) -> int | None:
        moment = record.times.get(status)
        return None if moment is None else int(moment)

    errors = [BatchError(code=one.code, message=one.message, line=one.line, param=one.param) for one in faults]
    batch = BatchObject(
        id=record.id, object="batch", endpoint=record.endpoint, model=record.model,
        errors=BatchErrors(object="list", data=errors) if errors else None,
        input_file_id=record.input_file_id, completion_window=record.completion_window, status=record.status.value,
        output_file_id=record.output_file_id, error_file_id=record.error_file_id,
        created_at=int(record.created), expires_at=int(record.expires),
        in_progress_at=at(BatchStatus.IN_PROGRESS), finalizing_at=at(BatchStatus.FINALIZING),
        completed_at=at(BatchStatus.COMPLETED), failed_at=at(BatchStatus.FAILED), expired_at=at(BatchStatus.EXPIRED),
        cancelling_at=at(BatchStatus.CANCELLING), cancelled_at=at(BatchStatus.CANCELLED),
        request_counts=RequestCounts(total=record.total, completed=progress.completed, failed=progress.failed),
        metadata=record.metadata,
    )  # fmt: skip
    if record.ended:
        batch["usage"] = BatchUsage(
            input_tokens=progress.input_tokens, input_tokens_details=CachedTokens(cached_tokens=0),
            output_tokens=progress.output_tokens, output_tokens_details=ReasoningTokens(reasoning_tokens=0),
            total_tokens=progress.input_tokens + progress.output_tokens,
        )  # fmt: skip
    return batch
