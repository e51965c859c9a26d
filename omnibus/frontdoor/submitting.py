"""Submitting a caller's request and waiting for it, while watching whether the caller is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar, cast

import msgspec
from fastapi import Request as HttpRequest

from omnibus.client.producer import Submission
from omnibus.client.request_events import Result
from omnibus.errors import (
    BrokerError,
    DeadlineExceeded,
    InvalidRequest,
    OmnibusError,
    Overloaded,
    RequestCancelled,
    RequestConflict,
)
from omnibus.frontdoor.bodies import AskingBody
from omnibus.frontdoor.body_route import fingerprint, off_loop
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.frontdoor.headers import GONE
from omnibus.frontdoor.idempotency_keys import key_conflict, request_key
from omnibus.frontdoor.named_files import fetch_named
from omnibus.frontdoor.served import Served
from omnibus.frontdoor.stage_readiness import NotReady
from omnibus.frontdoor.waiting_time import waiting
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.pipeline.routing import plan_route
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import Request

DEFERRED: Final = "deferred"
"""Key of a scope's state: the request is a line of a batch. It takes the lane for those, and may be submitted again."""
CANCEL_TIMEOUT = 5.0
_log = get_logger(__name__)
B = TypeVar("B", bound=AskingBody)
T = TypeVar("T")


class CallerGone(RequestCancelled):
    """The caller went away."""


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of every body of one answer."""

    rid: str
    model: str
    """The name that the caller used."""
    created: int
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that can be submitted."""

    request: Request
    served: Served
    rid: str
    keyed: bool
    """As of `Accepted`."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that is on its way."""

    submission: Submission
    served: Served
    keyed: bool
    """Sent with an idempotency key: it goes on without its caller, who can come back for the answer."""
    until: float
    """Time of the event loop at which it must have ended."""
    field_of: Callable[[str], str]
    """The caller's names of fields."""

    @property
    def rid(self) -> str:
        return self.submission.rid

    @property
    def head(self) -> Head:
        return Head(rid=self.rid, model=self.served.model, created=int(self.submission.ticket.created))

    @property
    def live_stage(self) -> int | None:
        """The stage whose text streams as it is written: the first that delivers text; None when none does."""
        return next((stage.stage_id for stage in self.submission.ticket.route.finals if stage.final == "text"), None)


async def submit(
    context: FrontDoorContext,
    http: HttpRequest,
    body: B,
    request_of: Callable[[B, PipelineSpec], Request],
    *,
    modality: str | None = None,
    part: int = 0,
) -> Accepted:
    """Submit what a body asks for; raises as `prepare` and `send`."""
    return await send(context, http, await prepare(context, http, body, request_of, modality=modality, part=part))


async def prepare(
    context: FrontDoorContext,
    http: HttpRequest,
    body: B,
    request_of: Callable[[B, PipelineSpec], Request],
    *,
    modality: str | None = None,
    part: int = 0,
) -> Prepared:
    """The request of a body, under the caller's idempotency key, or else under the id of the HTTP request.

    `modality` is the one that the route delivers, for a caller that names no model. `part`: the number of the request among
    several of one body. Raises a RequestError for what the pipeline cannot serve, NotReady
    where the caller does not want to wait and a stage that the request needs has no replica up, and InvalidRequest for an
    open input without a stream: only the head of a stream gives the caller the id for its next segments.
    """
    served, state = await context.models.find(body.model, modality=modality), http.scope["state"]
    await fetch_named(context, state["tenant"], body)
    request = with_adapter(served, await off_loop(len(state["body"]), request_of, body, served.spec))
    if request.resumable and not request.stream:
        raise InvalidRequest("an open input needs a stream, whose headers have the id for its segments", param="stream")
    if body.wait is False:
        needed = [stage.stage_id for stage in plan_route(served.spec, request.modalities).stages]
        if missing := await context.missing_stages(served.spec, needed):
            raise NotReady(served.model, missing)
    return await identified(http, request, served, part=part, has_fetched=bool(body.fetched))


async def identified(
    http: HttpRequest, request: Request, served: Served, *, part: int = 0, has_fetched: bool = False
) -> Prepared:
    """A request of the caller's tenant, under its idempotency key, or else under the id of the HTTP request.

    `has_fetched`: it has files from the web, which may be others when the same is sent again.
    """
    state = http.scope["state"]
    tenant, shape = state["tenant"] or request.tenant, ""
    key = request_key(http, tenant, served.spec.name)
    if key:
        state["request_id"] = key
    if key or (has_fetched and DEFERRED in state):
        shape = await fingerprint(http)
    lane = "batch" if DEFERRED in state and "batch" in served.spec.lanes else request.lane
    request = msgspec.structs.replace(request, tenant=tenant, trace=state["trace"], fingerprint=shape, lane=lane)
    rid = state["request_id"] if part == 0 else f"{state['request_id']}-{part}"
    return Prepared(request, served, rid, bool(key))


async def send(context: FrontDoorContext, http: HttpRequest, prepared: Prepared) -> Accepted:
    """Submit a request; raises as `Producer.submit`."""
    spec, state = prepared.served.spec, http.scope["state"]
    is_single = not prepared.keyed and DEFERRED not in state
    try:
        submission = await context.producer.submit(spec, prepared.request, rid=prepared.rid, is_single=is_single)
    except OmnibusError as error:
        context.metrics.refused.labels(spec.name, error.code).inc()
        if isinstance(error, RequestConflict) and prepared.keyed:
            # The caller knows its key, not the id that is made of it.
            raise key_conflict("request") from error
        raise
    until = asyncio.get_running_loop().time() + submission.timeout
    return Accepted(submission, prepared.served, prepared.keyed, until, state["field_of"])


def with_adapter(served: Served, request: Request) -> Request:
    """The request with the adapter that its model's name ends with; raises InvalidRequest where it names another."""
    if served.adapter is None:
        return request
    if request.lora not in (None, served.adapter):
        raise InvalidRequest(f"the model's name says {served.adapter!r}", param="lora")
    return msgspec.structs.replace(request, lora=served.adapter)


async def result_of(context: FrontDoorContext, http: HttpRequest, accepted: Accepted) -> Result:
    """The result of a request that succeeded; raises the error of one that did not.

    A caller that goes away cancels its request, unless it has an idempotency key.
    """
    with waiting(http.scope):
        result = await unless_gone(context, http, accepted, in_time(accepted, accepted.submission.result()))
    result.raise_for_state()
    return result


async def unless_gone(context: FrontDoorContext, http: HttpRequest, accepted: Accepted, work: Awaitable[T]) -> T:
    """Await `work`; when the caller goes away first, `abandon` and CallerGone."""
    task, is_gone = cast("asyncio.Task[object]", asyncio.current_task()), False

    def leave(_gone: asyncio.Future[None]) -> None:
        nonlocal is_gone
        is_gone = task.cancel()

    # Another server leaves no such future: it is asked.
    gone: asyncio.Future[None] = http.scope.get(GONE) or asyncio.create_task(_disconnected(http))
    gone.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not is_gone or task.uncancel():  # or the server stops
            raise
    finally:
        gone.remove_done_callback(leave)
        if GONE not in http.scope:
            gone.cancel()
    await abandon(context, accepted)
    raise CallerGone


async def abandon(context: FrontDoorContext, accepted: Accepted) -> None:
    """Cancel a request whose caller is gone, unless it has an idempotency key.

    Where the broker does not answer, the request ends by itself or by its deadline.
    """
    if accepted.keyed:
        return
    try:
        async with asyncio.timeout(CANCEL_TIMEOUT):
            await context.producer.cancel(accepted.served.spec.name, accepted.rid)
    except (OmnibusError, TimeoutError) as error:
        _log.warning(LogEvent.REQUEST_CANCELLED, rid=accepted.rid, failed=str(error))


def is_passing(error: OmnibusError) -> bool:
    """Whether the same request may be sent again: the pipeline has no room for it, or nobody knows what became of it. Pure."""
    return isinstance(error, Overloaded | BrokerError) and error.retryable and not error.ended_request


async def in_time(accepted: Accepted, work: Awaitable[T]) -> T:
    """Await `work`; raises DeadlineExceeded when the request must have ended before that has."""
    try:
        async with asyncio.timeout_at(accepted.until):
            return await work
    except TimeoutError as error:
        raise DeadlineExceeded from error


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
