"""`GET` and `DELETE /v1/requests/{id}`: any request by its id, however it was made; with API keys, those of the
key's owner, or of all for an admin."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, NotRequired, TypeVar

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from typing_extensions import TypedDict

from omnibus.client.request_events import Output, Result
from omnibus.errors import UnknownRequest
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import Usage, json_response, size_of, usage
from omnibus.frontdoor.api_keys import Role
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.data_urls import to_base64
from omnibus.frontdoor.error_answers import ErrorDetail, error_detail
from omnibus.frontdoor.served import Served
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.record import unknown
from omnibus.wire.envelope import StageTiming
from omnibus.wire.failed_attempt import Attempt
from omnibus.wire.names import check_name

router = APIRouter()
T = TypeVar("T")


class OutputItem(TypedDict):
    """One text or one file."""

    media_type: str
    text: NotRequired[str | None]
    data: NotRequired[str | None]
    """Base64 of a file."""


class RequestOutput(TypedDict):
    stage: str
    modality: str
    finish_reason: str
    usage: Usage
    items: list[OutputItem]


class StageSeconds(TypedDict):
    stage: str
    queued: float
    """Seconds from the task's publishing to its start."""
    running: float


class FailedAttempt(TypedDict):
    """An attempt that came to nothing."""

    stage: str
    run: int
    delivery: int
    """Which delivery of its task it was, from 1."""
    at: float
    """Seconds since the epoch."""
    replica: str | None
    code: str
    message: str


class RequestAnswer(TypedDict):
    """A request by its id: where it is, and its outputs."""

    id: str
    object: Literal["request"]
    model: str
    status: str
    """open, done, failed, cancelled or expired."""
    created: int
    outputs: list[RequestOutput]
    error: ErrorDetail | None
    stages: list[StageSeconds]
    attempts: list[FailedAttempt]
    """Those that failed."""


@router.get("/v1/requests/{request_id}", openapi_extra=RouteAccess.USER.stated)
async def get_request(request_id: str, http: HttpRequest, context: Context, model: str | None = None) -> Response:
    """Where a request is, and what it has delivered. `model` saves looking for it in every pipeline."""
    return await _answer(context, http, request_id, model, context.producer.result)


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
    candidates = [await context.models.find(model)] if model is not None else await context.models.all()
    owner = owner_of(http)
    for served in candidates:
        try:
            return served, await ask(served.spec.name, rid, tenant=owner)
        except UnknownRequest:
            continue
    raise unknown(rid)


def owner_of(http: HttpRequest) -> str | None:
    """The tenant whose requests the caller may see; None: those of all, for an admin, and where no keys are asked for."""
    return None if http.state.role is Role.ADMIN else http.state.tenant


def request_answer(result: Result, spec: PipelineSpec, model: str) -> RequestAnswer:
    """A request's record as a body."""
    return RequestAnswer(
        id=result.rid,
        object="request",
        model=model,
        status=result.state.value,
        created=int(result.created),
        outputs=[_output(output, spec) for output in result.outputs],
        error=error_detail(result.failure.exception()) if result.failure is not None else None,
        stages=[_seconds(timing, spec) for timing in result.timings],
        attempts=[failed_attempt(attempt, spec) for attempt in result.attempts],
    )


def _output(output: Output, spec: PipelineSpec) -> RequestOutput:
    return RequestOutput(
        stage=spec.stage_name(output.stage_id),
        modality=output.modality,
        finish_reason=output.finish_reason,
        usage=usage([output]),
        items=[_item(item, output) for item in output.items],
    )


def _item(item: bytes, output: Output) -> OutputItem:
    if output.modality == "text":
        return OutputItem(media_type=output.media_type, text=item.decode())
    return OutputItem(media_type=output.media_type, data=to_base64(item))


def _seconds(timing: StageTiming, spec: PipelineSpec) -> StageSeconds:
    queued, running = timing.seconds
    return StageSeconds(stage=spec.stage_name(timing.stage_id), queued=queued, running=running)


def failed_attempt(attempt: Attempt, spec: PipelineSpec) -> FailedAttempt:
    """An attempt as a body."""
    return FailedAttempt(
        stage=spec.stage_name(attempt.stage_id), run=attempt.run, delivery=attempt.delivery, at=attempt.at,
        replica=attempt.replica, code=attempt.code, message=attempt.message,
    )  # fmt: skip
