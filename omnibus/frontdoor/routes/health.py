"""Probes, metrics, version: open to everybody who can reach the port."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from omnibus.errors import OmnibusError
from omnibus.frontdoor.door import Door, TheDoor

PROBE_TIMEOUT = 2.0
router = APIRouter()


@router.get("/live")
async def live() -> Response:
    """The process answers."""
    return JSONResponse({"status": "ok"})


@router.get("/health")
async def health(door: TheDoor) -> Response:
    """The broker can be reached; 503 else."""
    return _status({"broker": door.connected()})


@router.get("/ready")
async def ready(door: TheDoor) -> Response:
    """Requests can be accepted: the broker can be reached and a pipeline is deployed; 503 else."""
    return _status({"broker": door.connected(), "pipelines": await _has_pipelines(door)})


@router.get("/metrics")
async def metrics(door: TheDoor) -> Response:
    """Prometheus' text format."""
    return Response(door.metrics.exposition(), media_type=door.metrics.content_type)


@router.get("/version")
async def get_version() -> Response:
    return JSONResponse({"version": version("omnibus")})


async def _has_pipelines(door: Door) -> bool:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            return bool(await door.models.all())
    except (OmnibusError, TimeoutError):
        return False


def _status(checks: dict[str, bool]) -> Response:
    well = all(checks.values())
    return JSONResponse({"status": "ok" if well else "unavailable", **checks}, status_code=200 if well else 503)
