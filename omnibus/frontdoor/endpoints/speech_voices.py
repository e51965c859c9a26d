"""`GET /v1/audio/voices`, in vLLM-Omni's shape."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import json_response
from omnibus.frontdoor.bodies import check_modality
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.voices import voices_of

router = APIRouter()


class VoicesQuery(BaseModel):
    """The model whose voices are listed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    """The model; not needed where one alone delivers sound."""


class VoiceList(TypedDict):
    """The voices of a model; empty where it has the one that it has, whatever a request calls it."""

    voices: list[str]
    uploaded_voices: list[str]


@router.get("/v1/audio/voices", response_model=VoiceList, openapi_extra=RouteAccess.USER.stated)
async def list_voices(context: Context, query: Annotated[VoicesQuery, Query()]) -> Response:
    """The voices that `/v1/audio/speech` takes."""
    served = await context.models.find(query.model, modality="audio")
    check_modality(served.spec, "audio")
    return await json_response(lambda: VoiceList(voices=voices_of(served.spec), uploaded_voices=[]))
