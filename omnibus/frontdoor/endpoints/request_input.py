"""`POST /v1/requests/{id}/input`: a further segment of a request with an open input, at whichever front door."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import Field
from typing_extensions import TypedDict

from omnibus.errors import InvalidRequest
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import json_response
from omnibus.frontdoor.bodies import FileNamingBody, ModelName, TokenIds
from omnibus.frontdoor.body_route import BodyRoute, off_loop
from omnibus.frontdoor.chat_messages import MAX_MESSAGES, ChatMessage, files_in, turns
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.endpoints.request_status import find_record
from omnibus.frontdoor.named_files import fetch_named
from omnibus.frontdoor.outbound.web_files import NamedFile
from omnibus.wire.request import Segment

router = APIRouter(route_class=BodyRoute)


class SegmentBody(FileNamingBody):
    """A segment: one of `prompt` and `messages`, or `end` alone."""

    model: ModelName | None = None
    """Saves looking for the request in every pipeline."""
    number: Annotated[int, Field(ge=1)] | None = None
    """The first has number 1. A segment that is sent again with its number counts once; without one it is the next."""
    prompt: str | TokenIds | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    end: bool = False
    """No segment follows."""

    def named_files(self) -> Iterable[NamedFile]:
        return files_in(self.messages or ())


class SegmentAnswer(TypedDict):
    """A segment is stored."""

    id: str
    object: Literal["request.segment"]
    number: int
    end: bool


@router.post("/v1/requests/{request_id}/input", response_model=SegmentAnswer, openapi_extra=RouteAccess.USER.stated)
async def send_segment(body: SegmentBody, http: HttpRequest, context: Context) -> Response:
    """Send a further segment of a request that is `resumable`; answered when it is stored."""
    rid: str = http.path_params["request_id"]
    if body.prompt is not None and body.messages is not None:
        raise InvalidRequest("give exactly one of prompt and messages", param="prompt")
    await fetch_named(context, http.state.tenant, body)
    segment = await off_loop(len(http.scope["state"]["body"]), _segment, body)
    served, _ = await find_record(context, http, rid, body.model)
    number = await context.producer.send_segment(served.spec, rid, segment, number=body.number)
    answer = SegmentAnswer(id=rid, object="request.segment", number=number, end=body.end)
    return await json_response(lambda: answer)


def _segment(body: SegmentBody) -> Segment:
    prompt = tuple(body.prompt) if isinstance(body.prompt, list) else body.prompt
    return Segment(
        prompt=prompt, messages=None if body.messages is None else turns(body.messages, body.fetched), end=body.end
    )
