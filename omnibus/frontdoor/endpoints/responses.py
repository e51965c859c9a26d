"""`POST /v1/responses`: a turn of a conversation that the server keeps, streamed, whole or in the background."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from msgspec.structs import replace as changed
from pydantic import TypeAdapter

from omnibus.client.request_events import ClientEvent
from omnibus.errors import InvalidRequest, RequestTooLarge
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import json_response, size_of, timing_headers
from omnibus.frontdoor.body_route import BodyRoute, naming_fields
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.data_urls import media_type_of, to_data_url
from omnibus.frontdoor.endpoints.response_shapes import ResponseObject
from omnibus.frontdoor.endpoints.stored_responses import event_stream, response_answer
from omnibus.frontdoor.idempotency_keys import key_conflict
from omnibus.frontdoor.job_submission import submit_job
from omnibus.frontdoor.openapi_document import EVENTS, answers_with
from omnibus.frontdoor.responses.chat_turns import ChatTurns, file_ids
from omnibus.frontdoor.responses.input_items import InputItem, shapes_of
from omnibus.frontdoor.responses.log_pieces import AskedResponse, Piece, ResponseEnd
from omnibus.frontdoor.responses.piece_maker import PieceMaker, events_of
from omnibus.frontdoor.responses.response_body import EarlierTurns, ResponseBody, response_request
from omnibus.frontdoor.responses.response_fold import ResponseFold
from omnibus.frontdoor.responses.response_record import ResponseNotReady, ResponseRecord, response_id
from omnibus.frontdoor.responses.response_store import item_list
from omnibus.frontdoor.retention import lifetime
from omnibus.frontdoor.streaming import EventStream, Frames, frame
from omnibus.frontdoor.submitting import DEFERRED, Accepted, Prepared, prepare, result_of, send
from omnibus.wire.request import encode_request

router = APIRouter(route_class=BodyRoute)
_items: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])


@dataclass(frozen=True, slots=True)
class NewResponse:
    """A response that is about to be made."""

    prepared: Prepared
    record: ResponseRecord
    asked: AskedResponse
    is_stored: bool


@router.post(
    "/v1/responses",
    response_model=ResponseObject,
    responses=answers_with(EVENTS),
    openapi_extra=RouteAccess.USER.stated,
)
async def create_response(body: ResponseBody, http: HttpRequest, context: Context) -> Response:
    """Answer a turn of a conversation, which goes on from a stored one where `previous_response_id` names it."""
    _check(body, http)
    body.going_on(await _conversation(context, http.state.tenant, body))
    new = _new(body, http, context, await prepare(context, http, body, response_request))
    if new.is_stored:
        known = await context.responses.known(new.record.owner, new.record.id) if new.prepared.keyed else None
        if known is not None and not (known.background and known.ended is None):
            return await _known(context, body, known, new.record)
        await context.responses.check_room(new.record.owner)
    if body.background:
        return await _in_background(context, http, body, new)
    accepted = await send(context, http, new.prepared)
    making = ForegroundResponse(context, accepted, new)
    if body.stream:
        return EventStream(context, http, accepted, making.encode)
    result = await result_of(context, http, accepted)
    for event in events_of(result):
        await making.take(event)
    await making.keep()
    headers = timing_headers(result, accepted.served.spec)
    return await json_response(making.fold.response, size_of(result.outputs), headers)


class ForegroundResponse:
    """A response whose caller waits for it; what comes of it is kept as it was shown, once it has ended."""

    def __init__(self, context: FrontDoorContext, accepted: Accepted, new: NewResponse) -> None:
        self.fold = ResponseFold(new.asked)
        self._store, self._new = context.responses, new
        self._maker = PieceMaker(accepted.submission.ticket.route, self.fold, new.asked.head["tools"])
        self._pieces: list[Piece] = []
        self._opening = list(self.fold.opening())

    async def encode(self, event: ClientEvent, frames: Frames) -> None:
        """Append the frames of an event; the last one goes out once the response is kept."""
        events = [*self._opening, *await self.take(event)]
        self._opening.clear()
        if self.fold.end is not None:
            await self.keep()
        frames += [frame(one, event=one["type"]) for one in events]

    async def take(self, event: ClientEvent) -> list[dict[str, Any]]:
        """The events of a response that an event of its request brings."""
        pieces = await self._maker.pieces(event)
        self._pieces += pieces
        return [one for piece in pieces for one in self.fold.take(piece)]

    async def keep(self) -> None:
        """Store it, where that was asked for."""
        if self._new.is_stored:
            assert isinstance(self._pieces[-1], ResponseEnd)
            record = changed(self._new.record, ended=self._store.now())
            await self._store.keep(record, self._new.asked, self._pieces)


def _check(body: ResponseBody, http: HttpRequest) -> None:
    if body.background and not body.is_stored:
        raise InvalidRequest("a response in the background is stored: leave store out", param="store")
    if body.background and DEFERRED in http.scope["state"]:
        raise InvalidRequest("a line of a batch is answered whole: leave background out", param="background")
    if body.resumable:
        raise InvalidRequest("a response has its whole input: go on with previous_response_id", param="resumable")


async def _conversation(context: FrontDoorContext, tenant: str | None, body: ResponseBody) -> EarlierTurns:
    """The conversation so far and the input; raises UnknownResponse, ResponseNotReady, UnknownFile, InvalidRequest."""
    before: list[dict[str, Any]] = []
    if body.previous_response_id is not None:
        with naming_fields(lambda _: "previous_response_id"):
            record = await context.responses.find(tenant, body.previous_response_id)
        stored = await context.responses.read(record)
        if stored.fold.end is None:
            raise ResponseNotReady(f"{record.id} has not ended", param="previous_response_id")
        before = item_list(stored.asked, stored.fold.response())
    earlier = _items.validate_python(before)
    turns = ChatTurns(await _stored_files(context, tenant, file_ids([*earlier, *body.own_items])))
    if body.instructions:
        turns.instruct(body.instructions)
    turns.add(earlier, "previous_response_id")
    turns.add(body.own_items, "input", numbered=not isinstance(body.input, str))
    return EarlierTurns(turns, before)


async def _stored_files(context: FrontDoorContext, tenant: str | None, names: Iterable[str]) -> dict[str, str]:
    """Stored files as data URLs, by id; raises UnknownFile, and RequestTooLarge before more is read than a body may have."""
    urls, left = dict[str, str](), context.options.max_body_bytes
    for name in names:
        record = await context.files.find(tenant, name)
        left -= record.nbytes
        if left < 0:
            most = context.options.max_body_bytes
            raise RequestTooLarge(f"the files of a request may have {most} bytes together", param="file_id")
        data = await context.files.read_whole(record)
        urls[name] = to_data_url(data, media_type_of(record.filename))
    return urls


def _new(body: ResponseBody, http: HttpRequest, context: FrontDoorContext, prepared: Prepared) -> NewResponse:
    now = context.responses.now()
    record = ResponseRecord(
        id=response_id(prepared.rid), owner=http.state.tenant, rid=prepared.rid, pipeline=prepared.served.spec.name,
        created=now, expires=now + lifetime(http.scope, context.options.keep_responses),
        fingerprint=prepared.request.fingerprint, background=bool(body.background),
    )  # fmt: skip
    asked = AskedResponse(
        head=head_of(body, record, prepared.served.model),
        items=[*body.conversation.before, *shapes_of(body.input, record.id)],
        has_text="text" in (prepared.request.modalities or ()),
    )
    return NewResponse(prepared, record, asked, body.is_stored)


async def _in_background(
    context: FrontDoorContext, http: HttpRequest, body: ResponseBody, new: NewResponse
) -> Response:
    """Store a response, queue it and submit its request. One that is refused leaves nothing, unless it was there before."""
    request = changed(new.prepared.request, stream=True)
    asked, responses = changed(new.asked, request=encode_request(request)), context.responses

    async def begin() -> tuple[ResponseRecord, bool]:
        return await responses.add(changed(new.record, created=responses.now()), asked)

    record = await submit_job(
        context, http, responses, begin,
        lambda _: replace(new.prepared, request=request), fingerprint=new.record.fingerprint, what="response",
    )  # fmt: skip
    return event_stream(context, record) if body.stream else await response_answer(context, record)


async def _known(context: FrontDoorContext, body: ResponseBody, known: ResponseRecord, new: ResponseRecord) -> Response:
    """The answer to a body that was sent before under the same idempotency key."""
    if known.fingerprint != new.fingerprint:
        raise key_conflict("response")
    return event_stream(context, known) if body.stream else await response_answer(context, known)


def head_of(body: ResponseBody, record: ResponseRecord, model: str) -> dict[str, Any]:
    """The fields of a response that do not change: what was asked for, and its defaults."""

    def given(field: Any, default: Any = None) -> Any:
        return default if field is None else _plain(field)

    return {
        "id": record.id, "object": "response", "created_at": int(record.created), "model": model,
        "instructions": body.instructions, "metadata": body.metadata or {}, "background": record.background,
        "store": body.is_stored, "previous_response_id": body.previous_response_id,
        "tools": [_plain(tool) for tool in body.tools or ()], "tool_choice": given(body.tool_choice, "auto"),
        "parallel_tool_calls": body.parallel_tool_calls is not False, "temperature": body.temperature, "top_p": body.top_p,
        "max_output_tokens": body.max_output_tokens, "top_logprobs": body.top_logprobs,
        "text": {"format": {"type": "text"}, **given(body.text, {})}, "reasoning": given(body.reasoning),
        "truncation": "disabled", "service_tier": "default", "user": body.user, "prompt_cache_key": body.prompt_cache_key,
        "safety_identifier": body.safety_identifier,
    }  # fmt: skip


def _plain(field: Any) -> Any:
    return field if isinstance(field, str | Mapping) else field.model_dump(by_alias=True, exclude_none=True)
