"""Control of a model's replicas: pause, sleep, profile, reset; under the addresses that vLLM has for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NotRequired

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

from omnibus.client.controls import Controls
from omnibus.client.rpc import CollectiveAnswer
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import json_response
from omnibus.frontdoor.bodies import ModelName
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.error_answers import ErrorDetail, error_detail
from omnibus.pipeline.spec import PipelineSpec

router = APIRouter(route_class=BodyRoute)


class ControlBody(BaseModel):
    """The stages that are meant, by default all. It may hold nothing else: a typo would mean all stages, too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelName | None = None
    stage_ids: list[int] | None = None


class PauseBody(ControlBody):
    """The query of `POST /pause`."""

    mode: str = "abort"
    clear_cache: bool = True


class WakeBody(ControlBody):
    """`POST /v1/omni/wakeup`."""

    model_config = ConfigDict(strict=True)


class SleepBody(WakeBody):
    """`POST /v1/omni/sleep`."""

    level: int = 1
    mode: str = "abort"


class ReplicaReply(TypedDict):
    """The answer of one replica."""

    stage: str
    replica: str
    value: NotRequired[Any]
    error: NotRequired[ErrorDetail | None]


class ControlAnswer(TypedDict):
    """The answers of all replicas."""

    object: str
    method: str
    complete: bool
    replicas: list[ReplicaReply]
    unanswered: list[str]
    """`<stage>.<replica>` of those that did not answer in time."""


_SLEEP, _WAKE = SleepBody(), WakeBody()
TheControlBody = Annotated[ControlBody, Query()]


@router.post("/v1/omni/sleep", openapi_extra=RouteAccess.ADMIN.stated)
async def sleep(context: Context, body: SleepBody = _SLEEP) -> Response:
    """Replicas give their device memory back, all or none; 400 for what could not be undone."""
    return await _apply(context, body, lambda it: it.sleep(body.level, mode=body.mode, stage_ids=body.stage_ids))


@router.post("/v1/omni/wakeup", openapi_extra=RouteAccess.ADMIN.stated)
async def wake_up(context: Context, body: WakeBody = _WAKE) -> Response:
    """Replicas take their device memory again."""
    return await _apply(context, body, lambda it: it.wake_up(body.stage_ids))


@router.post("/pause", openapi_extra=RouteAccess.ADMIN.stated)
async def pause(context: Context, body: Annotated[PauseBody, Query()]) -> Response:
    """Replicas take no more tasks; answers when they have none in hand. No request is lost."""
    return await _apply(
        context,
        body,
        lambda it: it.pause_generation(body.mode, clear_cache=body.clear_cache, stage_ids=body.stage_ids),
    )


@router.post("/resume", openapi_extra=RouteAccess.ADMIN.stated)
async def resume(context: Context, body: TheControlBody) -> Response:
    """Replicas take tasks again."""
    return await _apply(context, body, lambda it: it.resume_generation(body.stage_ids))


@router.get("/is_paused", openapi_extra=RouteAccess.USER.stated)
async def is_paused(context: Context, body: TheControlBody) -> Response:
    """Whether all replicas are paused."""
    _, controls = await _controls(context, body)
    return JSONResponse({"is_paused": await controls.is_paused(body.stage_ids)})


@router.post("/start_profile", openapi_extra=RouteAccess.ADMIN.stated)
async def start_profile(context: Context, body: TheControlBody) -> Response:
    """Engines that have a profiler start it."""
    return await _apply(context, body, lambda it: it.start_profile(body.stage_ids))


@router.post("/stop_profile", openapi_extra=RouteAccess.ADMIN.stated)
async def stop_profile(context: Context, body: TheControlBody) -> Response:
    """Engines that have a profiler stop it."""
    return await _apply(context, body, lambda it: it.stop_profile(body.stage_ids))


@router.post("/reset_prefix_cache", openapi_extra=RouteAccess.ADMIN.stated)
async def reset_prefix_cache(context: Context, body: TheControlBody) -> Response:
    """Engines forget the prefixes that they have cached."""
    return await _apply(context, body, lambda it: it.reset_prefix_cache(body.stage_ids))


async def _apply(
    context: FrontDoorContext, body: ControlBody, call: Callable[[Controls], Awaitable[CollectiveAnswer]]
) -> Response:
    spec, controls = await _controls(context, body)
    return await _answer(spec, await call(controls))


async def _controls(context: FrontDoorContext, body: ControlBody) -> tuple[PipelineSpec, Controls]:
    spec = (await context.models.find(body.model)).spec
    return spec, Controls(context.producer.connection, spec)


async def _answer(spec: PipelineSpec, answer: CollectiveAnswer) -> Response:
    replies = [
        ReplicaReply(
            stage=spec.stage(one.stage_id).name, replica=one.replica, value=one.value,
            error=error_detail(one.failure.exception()) if one.failure is not None else None,
        )
        for one in answer.answers
    ]  # fmt: skip
    return await json_response(lambda: ControlAnswer(
        object="control", method=answer.method, complete=answer.complete, replicas=replies,
        unanswered=[f"{spec.stage(stage_id).name}.{replica}" for stage_id, replica in answer.unanswered],
    ))  # fmt: skip
