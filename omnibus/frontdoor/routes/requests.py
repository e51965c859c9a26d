"""`GET` and `DELETE /v1/requests/{id}`: any request by its id, however it was made; with API keys, those of the key's owner."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request, Response

from omnibus.client.request_events import Result
from omnibus.errors import UnknownRequest
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.errors import JSON_TYPE
from omnibus.frontdoor.mapping.status import request_answer
from omnibus.frontdoor.served import Served
from omnibus.frontdoor.submitting import tenant_of
from omnibus.wire.subjects import check_name

router = APIRouter()


@router.get("/v1/requests/{request_id}")
async def get_request(request_id: str, http: Request, context: Context, model: str | None = None) -> Response:
    """Where a request is, and what it has delivered. `model` saves looking for it in every pipeline."""
    served, result = await _find(context, request_id, model, tenant_of(context, http), context.producer.result)
    return _answer(served, result)


@router.delete("/v1/requests/{request_id}")
async def cancel_request(request_id: str, http: Request, context: Context, model: str | None = None) -> Response:
    """Cancel a request; the answer shows it in its terminal state, which is another when it ended before."""
    return _answer(*await _find(context, request_id, model, tenant_of(context, http), context.producer.cancel))


async def _find(
    context: FrontDoorContext, rid: str, model: str | None, tenant: str | None, ask: Callable[..., Awaitable[Result]]
) -> tuple[Served, Result]:
    check_name(rid, "request_id")
    candidates = [await context.models.find(model)] if model is not None else await context.models.all()
    for served in candidates:
        try:
            return served, await ask(served.spec.name, rid, tenant=tenant)
        except UnknownRequest:
            continue
    raise UnknownRequest(f"no request {rid!r} is known; answers are kept for 15 minutes", param="request_id")


def _answer(served: Served, result: Result) -> Response:
    return Response(request_answer(result, served.spec, served.model).json_text(), media_type=JSON_TYPE)
