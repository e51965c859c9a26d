"""`POST /v1/replicas/{order}`: one replica drained, resumed or restarted. `replica_control.py` has what is of whole stages."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from omnibus.client.draining import chosen, drain_replica, restart_replica, resume_replica
from omnibus.errors import InvalidRequest, ReplicaMissing, RequestError
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import json_response
from omnibus.frontdoor.bodies import NAME_LENGTH, ModelName
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.context import Context
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.presence.replica_record import ReplicaRecord, read_replicas

DRAIN_TIMEOUT = 60.0
"""Seconds that a drain is waited for; it goes on beyond them."""
router = APIRouter(route_class=BodyRoute)


class UnknownReplica(RequestError, code="replica_not_found", http_status=404):
    """No replica of this name is up."""


class ReplicaBody(BaseModel):
    """The replica that is meant. It may hold nothing else."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelName | None = None
    stage_id: int
    replica: Annotated[str, Field(min_length=1, max_length=NAME_LENGTH)]


class OrderedReplica(TypedDict):
    object: Literal["replica.ordered"]
    order: str
    stage: str
    replica: str


@router.post("/v1/replicas/drain", response_model=OrderedReplica, openapi_extra=RouteAccess.ADMIN.stated)
async def drain(body: ReplicaBody, context: Context) -> Response:
    """A replica takes no more tasks, until it is resumed, also when it starts anew; answers when it has none in hand."""
    spec, record = await _meant(context, body)
    await drain_replica(context.producer.connection, spec, record, timeout=DRAIN_TIMEOUT)
    return await _ordered(spec, body, "drain")


@router.post("/v1/replicas/resume", response_model=OrderedReplica, openapi_extra=RouteAccess.ADMIN.stated)
async def resume(body: ReplicaBody, context: Context) -> Response:
    """A replica takes tasks again; 400 while its whole stage is paused."""
    spec, record = await _meant(context, body)
    await resume_replica(context.producer.connection, spec, record)
    return await _ordered(spec, body, "resume")


@router.post("/v1/replicas/restart", response_model=OrderedReplica, openapi_extra=RouteAccess.ADMIN.stated)
async def restart(body: ReplicaBody, context: Context) -> Response:
    """A replica finishes what it has, ends, and is started again by its worker; answers when that has begun."""
    spec, record = await _meant(context, body)
    await restart_replica(context.producer.connection, spec, record)
    return await _ordered(spec, body, "restart")


async def _meant(context: Context, body: ReplicaBody) -> tuple[PipelineSpec, ReplicaRecord]:
    """Raises InvalidRequest for a stage that there is not, UnknownReplica for a replica that is not up."""
    spec = (await context.models.find(body.model)).spec
    if body.stage_id not in spec.by_ref:
        raise InvalidRequest(f"pipeline {spec.name!r} has no stage {body.stage_id}", param="stage_id")
    found = await read_replicas(context.producer.connection, spec.name)
    try:
        return spec, chosen(spec, found, [f"{body.stage_id}.{body.replica}"])[0]
    except ReplicaMissing as error:
        raise UnknownReplica(error.message, param="replica") from error


async def _ordered(spec: PipelineSpec, body: ReplicaBody, order: str) -> Response:
    stage = spec.stage_name(body.stage_id)
    return await json_response(
        lambda: OrderedReplica(object="replica.ordered", order=order, stage=stage, replica=body.replica)
    )
