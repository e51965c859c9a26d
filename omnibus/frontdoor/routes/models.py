"""`GET /v1/models`."""

from __future__ import annotations

from fastapi import APIRouter, Response

from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.errors import JSON_TYPE
from omnibus.frontdoor.schemas.models import Model, ModelList
from omnibus.frontdoor.served import Served

router = APIRouter()


@router.get("/v1/models")
async def list_models(context: Context) -> Response:
    """Every deployed pipeline."""
    models = [_model(context, served) for served in await context.models.all()]
    return Response(ModelList(object="list", data=models).json_text(), media_type=JSON_TYPE)


@router.get("/v1/models/{model:path}")
async def get_model(model: str, context: Context) -> Response:
    """One of them."""
    return Response(_model(context, await context.models.find(model)).json_text(), media_type=JSON_TYPE)


def _model(context: FrontDoorContext, served: Served) -> Model:
    return Model(
        id=served.model,
        object="model",
        created=context.started,
        owned_by="omnibus",
        root=served.spec.name,
        modalities=list(served.spec.modalities),
    )
