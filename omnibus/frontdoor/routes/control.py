"""Orders to the replicas of a model: pause, sleep, profile, reset; under the addresses that vLLM has for them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse

from omnibus.client.controls import Controls
from omnibus.client.rpc import CollectiveAnswer
from omnibus.frontdoor.door import Door, TheDoor
from omnibus.frontdoor.errors import JSON_TYPE
from omnibus.frontdoor.mapping.status import error_detail
from omnibus.frontdoor.schemas.control import ControlAnswer, ReplicaReply, SleepBody
from omnibus.pipeline.spec import PipelineSpec

router = APIRouter()
StageIds = Annotated[list[int] | None, Query()]


@router.post("/v1/omni/sleep")
async def sleep(door: TheDoor, body: SleepBody | None = None) -> Response:
    """Replicas give their device memory back, all or none; 400 for what could not be undone."""
    body = body or SleepBody()
    spec, controls = await _controls(door, body.model)
    return _answer(spec, await controls.sleep(body.level, mode=body.mode, stage_ids=body.stage_ids))


@router.post("/v1/omni/wakeup")
async def wake_up(door: TheDoor, body: SleepBody | None = None) -> Response:
    """And take it again."""
    body = body or SleepBody()
    spec, controls = await _controls(door, body.model)
    return _answer(spec, await controls.wake_up(body.stage_ids))


@router.post("/pause")
async def pause(
    door: TheDoor, model: str | None = None, mode: str = "abort", clear_cache: bool = True, stage_ids: StageIds = None
) -> Response:
    """Replicas take no more tasks; answers when they have none in hand. No request is lost."""
    spec, controls = await _controls(door, model)
    return _answer(spec, await controls.pause_generation(mode, clear_cache=clear_cache, stage_ids=stage_ids))


@router.post("/resume")
async def resume(door: TheDoor, model: str | None = None, stage_ids: StageIds = None) -> Response:
    """They take tasks again."""
    spec, controls = await _controls(door, model)
    return _answer(spec, await controls.resume_generation(stage_ids))


@router.get("/is_paused")
async def is_paused(door: TheDoor, model: str | None = None, stage_ids: StageIds = None) -> Response:
    """Whether all replicas are paused."""
    _, controls = await _controls(door, model)
    return JSONResponse({"is_paused": await controls.is_paused(stage_ids)})


@router.post("/start_profile")
async def start_profile(door: TheDoor, model: str | None = None, stage_ids: StageIds = None) -> Response:
    """Engines that have a profiler start it."""
    spec, controls = await _controls(door, model)
    return _answer(spec, await controls.start_profile(stage_ids))


@router.post("/stop_profile")
async def stop_profile(door: TheDoor, model: str | None = None, stage_ids: StageIds = None) -> Response:
    """And stop it."""
    spec, controls = await _controls(door, model)
    return _answer(spec, await controls.stop_profile(stage_ids))


@router.post("/reset_prefix_cache")
async def reset_prefix_cache(door: TheDoor, model: str | None = None, stage_ids: StageIds = None) -> Response:
    """Engines forget the prefixes that they have cached."""
    spec, controls = await _controls(door, model)
    return _answer(spec, await controls.reset_prefix_cache(stage_ids))


async def _controls(door: Door, model: str | None) -> tuple[PipelineSpec, Controls]:
    spec = (await door.models.find(model)).spec
    return spec, Controls(door.producer.connection, spec)


def _answer(spec: PipelineSpec, said: CollectiveAnswer) -> Response:
    replies = [
        ReplicaReply(
            stage=spec.stage(answer.stage_id).name, replica=answer.replica, value=answer.value,
            error=error_detail(answer.failure.exception()) if answer.failure is not None else None,
        )
        for answer in said.answers
    ]  # fmt: skip
    body = ControlAnswer(
        object="control", method=said.method, complete=said.complete, replicas=replies,
        unanswered=[f"{spec.stage(stage_id).name}.{replica}" for stage_id, replica in said.unanswered],
    )  # fmt: skip
    return Response(body.json_text(), media_type=JSON_TYPE)
