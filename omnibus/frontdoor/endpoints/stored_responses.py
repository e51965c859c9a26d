"""`/v1/responses/{id}`: stored responses, at whichever front door; their events, from any of them on; each caller has its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi import Request as HttpRequest
from msgspec.structs import replace
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import StreamingResponse

from omnibus.errors import InvalidRequest, OmnibusError, PayloadLost, UnknownRequest
from omnibus.files.line_log import LogFollower
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import json_response, list_response
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.endpoints.response_shapes import DeletedResponse, InputItemList, ResponseObject
from omnibus.frontdoor.openapi_document import EVENTS, answers_with
from omnibus.frontdoor.responses.log_pieces import AskedResponse, ResponseEnd, pieces_in
from omnibus.frontdoor.responses.response_body import Include
from omnibus.frontdoor.responses.response_fold import ResponseFold
from omnibus.frontdoor.responses.response_record import ResponseRecord
from omnibus.frontdoor.streaming import DONE, PING, STREAM_HEADERS, error_frame, frame

CANCEL_WAIT = 5.0
"""Seconds that a cancellation waits for the end, with what was written until then."""
router = APIRouter()


class _Included(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    include: list[Include] = []
    include_in: Annotated[list[Include], Field(alias="include[]")] = []
    """The same as clients write it."""


class RetrieveQuery(_Included):
    """How a response is read."""

    stream: bool = False
    starting_after: Annotated[int, Field(ge=0)] | None = None
    """The number of the event behind which the stream begins."""
    include_obfuscation: bool = False


class ItemQuery(_Included):
    """Which of the items are listed."""

    after: str | None = None
    """The id of the item behind which the list begins."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"


@router.get(
    "/v1/responses/{response_id}",
    response_model=ResponseObject,
    responses=answers_with(EVENTS),
    openapi_extra=RouteAccess.USER.stated,
)
async def get_response(
    response_id: str, http: HttpRequest, context: Context, query: Annotated[RetrieveQuery, Query()]
) -> Response:
    """A response as it is now; with `stream=true` its events, those behind `starting_after`, until it has ended."""
    if query.include_obfuscation:
        raise InvalidRequest("events are not obfuscated", param="include_obfuscation")
    if query.starting_after is not None and not query.stream:
        raise InvalidRequest("only a stream starts after an event: set stream=true", param="starting_after")
    record = await context.responses.find(http.state.tenant, response_id)
    if query.stream:
        return event_stream(context, record, -1 if query.starting_after is None else query.starting_after)
    return await response_answer(context, record)


@router.post("/v1/responses/{response_id}/cancel", response_model=ResponseObject, openapi_extra=RouteAccess.USER.stated)
async def cancel_response(response_id: str, http: HttpRequest, context: Context) -> Response:
    """Cancel a response in the background; one that has ended stays as it is."""
    responses = context.responses
    record = await responses.find(http.state.tenant, response_id)
    if not record.background:
        raise InvalidRequest("only a response in the background can be cancelled", param="response_id")
    if record.ended is None:
        record = await responses.change(record, lambda one: replace(one, cancelling=True)) or record
        await _cancel_request(context, record)
        await _until_ended(context, record)
    return await response_answer(context, record)


@router.delete("/v1/responses/{response_id}", response_model=DeletedResponse, openapi_extra=RouteAccess.USER.stated)
async def delete_response(response_id: str, http: HttpRequest, context: Context) -> Response:
    """Remove a response at once; one that is still made is cancelled. Those that went on from it keep its conversation."""
    record = await context.responses.find(http.state.tenant, response_id)
    await context.responses.remove(record)
    if record.ended is None:
        await _cancel_request(context, record)
    return await json_response(lambda: DeletedResponse(id=record.id, object="response", deleted=True))


@router.get(
    "/v1/responses/{response_id}/input_items", response_model=InputItemList, openapi_extra=RouteAccess.USER.stated
)
async def list_input_items(
    response_id: str, http: HttpRequest, context: Context, query: Annotated[ItemQuery, Query()]
) -> Response:
    """The items that a response had as its input, with those of the responses before it; the last one first."""
    record = await context.responses.find(http.state.tenant, response_id)
    items = (await context.responses.read(record)).asked.items
    if query.order == "desc":
        items = items[::-1]
    if query.after is not None:
        ids = [item["id"] for item in items]
        if query.after not in ids:
            raise InvalidRequest(f"after: there is no item {query.after[:80]!r}", param="after")
        items = items[ids.index(query.after) + 1 :]
    return await list_response(items[: query.limit], has_more=len(items) > query.limit)


async def response_answer(context: FrontDoorContext, record: ResponseRecord) -> Response:
    """A stored response as a body."""
    stored = await context.responses.read(record)
    return await json_response(lambda: stored.response(record), stored.nbytes)


def event_stream(context: FrontDoorContext, record: ResponseRecord, after: int = -1) -> Response:
    """The events of a stored response with numbers above `after`, until it has ended."""
    return StreamingResponse(_frames(context, record, after), headers=STREAM_HEADERS, media_type="text/event-stream")


async def _frames(context: FrontDoorContext, record: ResponseRecord, after: int) -> AsyncIterator[bytes]:
    try:
        async for frames in _event_frames(context, record, after):
            yield frames
    except OmnibusError as error:
        yield error_frame(error)
    yield DONE


async def _event_frames(context: FrontDoorContext, record: ResponseRecord, after: int) -> AsyncIterator[bytes]:
    """Frames as they come, and pings; raises UnknownResponse when it is deleted meanwhile."""
    fold: ResponseFold | None = None
    sent_at = time.monotonic()
    async with LogFollower(context.producer.connection, record.id) as follower:
        while fold is None or fold.end is None:
            frames = list[bytes]()
            for piece in pieces_in(await follower.read()):
                if isinstance(piece, AskedResponse):
                    fold = ResponseFold(piece)
                    events = list(fold.opening())
                elif fold is None:
                    raise PayloadLost(f"the log of response {record.id} has lost its beginning")
                else:
                    events = list(fold.take(piece))
                frames += [frame(one, event=one["type"]) for one in events if one["sequence_number"] > after]
            if not frames and time.monotonic() - sent_at >= context.options.ping_interval:
                await context.responses.find(record.owner, record.id)
                frames = [PING]
            if frames:
                yield b"".join(frames)
                sent_at = time.monotonic()


async def _cancel_request(context: FrontDoorContext, record: ResponseRecord) -> None:
    with suppress(UnknownRequest):  # its runner submits it no more
        await context.producer.cancel(record.pipeline, record.rid)


async def _until_ended(context: FrontDoorContext, record: ResponseRecord) -> None:
    """Wait a while for the end that the runner writes."""
    with suppress(TimeoutError):
        async with asyncio.timeout(CANCEL_WAIT), LogFollower(context.producer.connection, record.id) as follower:
            while not any(isinstance(piece, ResponseEnd) for piece in pieces_in(await follower.read())):
                pass
