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
from omnibus.frontdoor.schemas.control import ControlAnswer, Order, PauseOrder, ReplicaReply, SleepBody, WakeBody
from omnibus.pipeline.spec import PipelineSpec

router = APIRouter()
TheOrder = Annotated[Order, Query()]


@router.post("/v1/omni/sleep")
async def sleep(door: TheDoor, body: SleepBody | None = None) -> Response:
    """Replicas give their device memory back, all or none; 400 for what could not be undone."""
    body = body or SleepBody()
    spec, controls = await _controls(door, body)
    return _answer(spec, await controls.sleep(body.level, mode=body.mode, stage_ids=body.stage_ids))


@router.post("/v1/omni/wakeup")
async def wake_up(door: TheDoor, body: WakeBody | None = None) -> Response:
    """And take it again."""
    body = body or WakeBody()
    spec, controls = await _controls(door, body)
    return _answer(spec, await controls.wake_up(body.stage_ids))


@router.post("/pause")
async def pause(door: TheDoor, order: Annotated[PauseOrder, Query()]) -> Response:
    """Replicas take no more tasks; answers when they have none in hand. No request is lost."""
    spec, controls = await _controls(door, order)
    said = await controls.pause_generation(order.mode, clear_cache=order.clear_cache, stage_ids=order.stage_ids)
    return _answer(spec, said)


@router.post("/resume")
async def resume(door: TheDoor, order: TheOrder) -> Response:
    """They take tasks again."""
    spec, controls = await _controls(door, order)
    return _answer(spec, await controls.resume_generation(order.stage_ids))


@router.get("/is_paused")
async def is_paused(door: TheDoor, order: TheOrder) -> Response:
    """Whether all replicas are paused."""
    _, controls = await _controls(door, order)
    return JSONResponse({"is_paused": await controls.is_paused(order.stage_ids)})


@router.post("/start_profile")
async def start_profile(door: TheDoor, order: TheOrder) -> Response:
    """Engines that have a profiler start it."""
    spec, controls = await _controls(door, order)
    return _answer(spec, await controls.start_profile(order.stage_ids))


@router.post("/stop_profile")
async def stop_profile(door: TheDoor, order: TheOrder) -> Response:
    """And stop it."""
    spec, controls = await _controls(door, order)
    return _answer(spec, await controls.stop_profile(order.stage_ids))


@router.post("/reset_prefix_cache")
async def reset_prefix_cache(door: TheDoor, order: TheOrder) -> Response:
    """Engines forget the prefixes that they have cached."""
    spec, controls = await _controls(door, order)
    return _answer(spec, await controls.reset_prefix_cache(order.stage_ids))


async def _controls(door: Door, order: Order) -> tuple[PipelineSpec, Controls]:
    spec = (await door.models.find(order.model)).spec
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
