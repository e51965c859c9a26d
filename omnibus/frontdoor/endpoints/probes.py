"""Probes, metrics, version: open to everybody who can reach the port."""

from __future__ import annotations

import asyncio
import os
from importlib.metadata import version
from typing import Any

import msgspec
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from omnibus.errors import BrokerError, OmnibusError
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.headers import PROCESS_HEADER
from omnibus.frontdoor.openapi_document import answers_with

PROBE_TIMEOUT = 2.0
router = APIRouter()


@router.get("/live", openapi_extra=RouteAccess.OPEN.stated)
async def live() -> Response:
    """The process answers, and says which it is."""
    return JSONResponse({"status": "ok"}, headers={PROCESS_HEADER: str(os.getpid())})


@router.get("/health", openapi_extra=RouteAccess.OPEN.stated)
async def health(context: Context) -> Response:
    """The broker can be reached; 503 else."""
    return _status({"broker": context.connected()})


@router.get("/ready", openapi_extra=RouteAccess.OPEN.stated)
async def ready(context: Context, model: str | None = None) -> Response:
    """Requests can be accepted: the broker can be reached and a pipeline is deployed; 503 else.

    With `model`: every stage of it has a replica up; a 503 names those that have none, and how long they have been loading.
    """
    if model is None or not context.connected():
        return _status({"broker": context.connected(), "pipelines": await _has_pipelines(context)})
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            missing = await context.missing_stages((await context.models.find(model)).spec)
    except (BrokerError, TimeoutError):
        return _status({"broker": False})
    return _status({"broker": True}, model=model, missing=[msgspec.to_builtins(one) for one in missing])


@router.get(
    "/metrics", response_class=Response, responses=answers_with("text/plain"), openapi_extra=RouteAccess.METRICS.stated
)
async def metrics(context: Context) -> Response:
    """Prometheus' text format."""
    return Response(context.metrics.exposition(), media_type=context.metrics.content_type)


@router.get("/version", openapi_extra=RouteAccess.OPEN.stated)
async def get_version() -> Response:
    return JSONResponse({"version": version("omnibus")})


async def _has_pipelines(context: FrontDoorContext) -> bool:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            return bool(await context.models.all())
    except (OmnibusError, TimeoutError):
        return False


def _status(checks: dict[str, bool], **more: Any) -> Response:
    well = all(checks.values()) and not more.get("missing")
    return JSONResponse({"status": "ok" if well else "unavailable", **checks, **more}, status_code=200 if well else 503)
