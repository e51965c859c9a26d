"""`POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`, as vLLM has them: adapters of a pipeline while it runs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from pydantic import Field

from omnibus.client.adapter_changes import adapter_stages, add_adapter, remove_adapter
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.bodies import NAME_LENGTH, Body, Matching, ModelName
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.served import ADAPTER_MARK
from omnibus.frontdoor.stage_readiness import NotReady

router = APIRouter(route_class=BodyRoute)
_WORDS = f"a name without spaces and without {ADAPTER_MARK!r}"


class UnloadAdapterBody(Body):
    model: ModelName | None = None
    """The pipeline."""
    lora_name: Annotated[str, Field(min_length=1, max_length=NAME_LENGTH)]


class LoadAdapterBody(UnloadAdapterBody):
    lora_name: Annotated[str, Field(max_length=NAME_LENGTH), Matching(rf"[^\s{ADAPTER_MARK}]+", _WORDS)]
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    """A folder of the workers' machines, `package:` or a name on the hub."""
    load_inplace: bool = False
    """In the place of the adapter that has the name."""


@router.post("/v1/load_lora_adapter", openapi_extra=RouteAccess.ADMIN.stated)
async def load_adapter(body: LoadAdapterBody, context: Context) -> Response:
    """Add an adapter to every replica, those that start later too; answers when all that are up have it."""
    served = await context.models.find(body.model)
    if missing := await context.missing_stages(served.spec, adapter_stages(served.spec)):
        raise NotReady(served.model, missing)
    connection = context.producer.connection
    await add_adapter(connection, served.spec, body.lora_name, body.lora_path, again=body.load_inplace)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/v1/unload_lora_adapter", openapi_extra=RouteAccess.ADMIN.stated)
async def unload_adapter(body: UnloadAdapterBody, context: Context) -> Response:
    """Remove an adapter from every replica."""
    served = await context.models.find(body.model)
    await remove_adapter(context.producer.connection, served.spec, body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")
