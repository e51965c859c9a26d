"""Orders to the replicas of a model: pause, sleep, profile, reset; under the addresses that vLLM has for them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from omnibus.client.controls import Controls
from omnibus.client.rpc import CollectiveAnswer
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.errors import JSON_TYPE
from omnibus.frontdoor.mapping.status import error_detail
from omnibus.frontdoor.schemas.control import ControlAnswer, ControlBody, PauseBody, ReplicaReply, SleepBody, WakeBody
from omnibus.pipeline.spec import PipelineSpec

router = APIRouter()
TheControlBody = Annotated[ControlBody, Query()]


@router.post("/v1/omni/sleep")
async def sleep(context: Context, body: SleepBody | None = None) -> Response:
    """Replicas give their device memory back, all or none; 400 for what could not be undone."""
    body = body or SleepBody()
    spec, controls = await _controls(context, body)
    return _answer(spec, await controls.sleep(body.level, mode=body.mode, stage_ids=body.stage_ids))


@router.post("/v1/omni/wakeup")
async def wake_up(context: Context, body: WakeBody | None = None) -> Response:
    """And take it again."""
    body = body or WakeBody()
    spec, controls = await _controls(context, body)
    return _answer(spec, await controls.wake_up(body.stage_ids))


@router.post("/pause")
async def pause(context: Context, body: Annotated[PauseBody, Query()]) -> Response:
    """Replicas take no more tasks; answers when they have none in hand. No request is lost."""
    spec, controls = await _controls(context, body)
    answer = await controls.pause_generation(body.mode, clear_cache=body.clear_cache, stage_ids=body.stage_ids)
    return _answer(spec, answer)


@router.post("/resume")
async def resume(context: Context, body: TheControlBody) -> Response:
    """They take tasks again."""
    spec, controls = await _controls(context, body)
    return _answer(spec, await controls.resume_generation(body.stage_ids))


@router.get("/is_paused")
async def is_paused(context: Context, body: TheControlBody) -> Response:
    """Whether all replicas are paused."""
    _, controls = await _controls(context, body)
    return JSONResponse({"is_paused": await controls.is_paused(body.stage_ids)})


@router.post("/start_profile")
async def start_profile(context: Context, body: TheControlBody) -> Response:
    """Engines that have a profiler start it."""
    spec, controls = await _controls(context, body)
    return _answer(spec, await controls.start_profile(body.stage_ids))


@router.post("/stop_profile")
async def stop_profile(context: Context, body: TheControlBody) -> Response:
    """And stop it."""
    spec, controls = await _controls(context, body)
    return _answer(spec, await controls.stop_profile(body.stage_ids))


@router.post("/reset_prefix_cache")
async def reset_prefix_cache(context: Context, body: TheControlBody) -> Response:
    """Engines forget the prefixes that they have cached."""
    spec, controls = await _controls(context, body)
    return _answer(spec, await controls.reset_prefix_cache(body.stage_ids))


async def _controls(context: FrontDoorContext, body: ControlBody) -> tuple[PipelineSpec, Controls]:
    spec = (await context.models.find(body.model)).spec
    return spec, Controls(context.producer.connection, spec)


def _answer(spec: PipelineSpec, answer: CollectiveAnswer) -> Response:
    replies = [
        ReplicaReply(
            stage=spec.stage(answer.stage_id).name, replica=answer.replica, value=answer.value,
            error=error_detail(answer.failure.exception()) if answer.failure is not None else None,
        )
        for answer in answer.answers
    ]  # fmt: skip
    body = ControlAnswer(
        object="control", method=answer.method, complete=answer.complete, replicas=replies,
        unanswered=[f"{spec.stage(stage_id).name}.{replica}" for stage_id, replica in answer.unanswered],
    )  # fmt: skip
    return Response(body.json_text(), media_type=JSON_TYPE)
