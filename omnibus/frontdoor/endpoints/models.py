"""`GET /v1/models`."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter, Response
from typing_extensions import TypedDict

from omnibus.errors import BrokerError
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import json_response
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.served import ADAPTER_MARK, Served
from omnibus.pipeline.spec import PipelineSpec

router = APIRouter()


class Model(TypedDict):
    """A deployed pipeline under the name that it is served by, or an adapter of one."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    """The pipeline's own name."""
    parent: str | None
    """The model that an adapter belongs to."""
    modalities: list[str]
    """The outputs that it can deliver."""
    ready: bool
    """Whether each of its stages has a replica up; a request to another one waits for them until its deadline."""


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]


@router.get("/v1/models", openapi_extra=RouteAccess.USER.stated)
async def list_models(context: Context) -> Response:
    """Every deployed pipeline, and its adapters: those that are ready first, as many clients take the first one; then by name."""
    looks = (_with_adapters(context, served) for served in await context.models.all())
    models = [one for found in await asyncio.gather(*looks) for one in found]
    models.sort(key=lambda model: (not model["ready"], model["id"]))
    return await json_response(lambda: ModelList(object="list", data=models))


@router.get("/v1/models/{model:path}", openapi_extra=RouteAccess.USER.stated)
async def get_model(model: str, context: Context) -> Response:
    """One model, or one adapter."""
    found = await _model(context, await context.models.find(model))
    return await json_response(lambda: found)


async def _with_adapters(context: FrontDoorContext, served: Served) -> list[Model]:
    model = await _model(context, served)
    names = (f"{served.model}{ADAPTER_MARK}{adapter}" for adapter in served.spec.adapters)
    return [model, *(Model(**{**model, "id": name, "parent": served.model}) for name in names)]


async def _model(context: FrontDoorContext, served: Served) -> Model:
    return Model(
        id=served.model,
        object="model",
        created=context.started,
        owned_by="omnibus",
        root=served.spec.name,
        parent=None if served.adapter is None else served.model.removesuffix(f"{ADAPTER_MARK}{served.adapter}"),
        modalities=list(served.spec.modalities),
        ready=await _is_ready(context, served.spec),
    )


async def _is_ready(context: FrontDoorContext, spec: PipelineSpec) -> bool:
    """False, too, where the replicas cannot be read: credentials may be for other pipelines only."""
    try:
        return not await context.missing_stages(spec)
    except BrokerError:
        return False
