"""The record of a request that enters a pipeline, and what is done with it then: pure.

The shell creates record and timer, then publishes the first tasks; the request is accepted when the last of them is
acknowledged. When the record cannot be created because the id is taken, it reads that and asks `check_same`.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress

import msgspec
from msgspec.structs import replace

from omnibus.errors import DeadlineExceeded, InvalidRequest, RequestConflict
from omnibus.pipeline.route import Route
from omnibus.pipeline.spec import OVERFLOW_LANE, PipelineSpec
from omnibus.requests.advance import end_again, entry_tasks
from omnibus.requests.effects import CreateRecord, Effect, SaveRecord, ScheduleDeadline
from omnibus.requests.record import Record
from omnibus.requests.request_checks import validate
from omnibus.requests.state import RequestState
from omnibus.wire.envelope import Ticket
from omnibus.wire.failure import Failure
from omnibus.wire.payload import INLINE_LIMIT, Payload
from omnibus.wire.request import (
    REQUEST_MEDIA_TYPE,
    Request,
    decode_request,
    encode_request,
)

_canonical = msgspec.msgpack.Encoder(order="deterministic")


def digest(request: Request) -> str:
    """Tells two requests apart that came under one id; what does not change the answer is left out.

    A front door's fingerprint stands for the content: a file from the web may be another when its address is sent again.
    """
    content = (None, None) if request.fingerprint else (request.prompt, request.messages)
    same = replace(request, trace={}, priority=0, affinity=None, prompt=content[0], messages=content[1])
    return hashlib.sha256(_canonical.encode(same)).hexdigest()


def new_record(  # noqa: PLR0913 what its admitter knows of a request, each by its name
    spec: PipelineSpec,
    request: Request,
    *,
    rid: str,
    payload: Payload,
    nonce: str,
    now: float,
    front: str | None,
    lane: str | None = None,
    route: Route | None = None,
) -> Record:
    """The record of a valid request. `payload` holds the encoded request, inline or by reference.

    `lane` is the one that its tasks take, by default what it asks for. `route` is what `validate` has returned; by default
    it is asked here, and this raises as it does.
    """
    ticket = Ticket(
        rid=rid, pipeline=spec.name, route=route or validate(spec, request), created=now,
        deadline=now + timeout_of(spec, request), request=payload, front=front, lane=lane or request.lane,
        priority=request.priority, max_attempts=spec.max_attempts, affinity=request.affinity, trace=request.trace,
        tenant=request.tenant, nonce=nonce, digest=digest(request),
        resumable=request.resumable,
    )  # fmt: skip
    return Record(ticket=ticket)


def timeout_of(spec: PipelineSpec, request: Request) -> float:
    """Seconds that a request may take: what it asks for, never more than its pipeline's."""
    return spec.deadline if request.deadline is None else min(request.deadline, spec.deadline)


def lane_of(spec: PipelineSpec, request: Request, others: int) -> str:
    """The lane of a request whose tenant has `others` open that asked for the same: the overflow beyond its share.

    Invariant: all that are open count, not those in the lane alone. Else each that comes anew would pass the tenant's own
    older ones in the overflow, which would wait for as long as more come.
    """
    share = spec.tenant_share
    is_beyond = share is not None and others >= share
    return OVERFLOW_LANE if is_beyond and request.lane == "interactive" else request.lane


def unadmitted_record(
    pipeline: str,
    rid: str,
    state: RequestState,
    failure: Failure,
    *,
    nonce: str,
    now: float,
    data: bytes = b"",
    front: str | None = None,
) -> Record:
    """The record of a raw request that ends as it begins, so that its producer can read why.

    A producer that sends the same `data` again finds it, where they are a request.
    """
    empty = Payload.inline(b"", REQUEST_MEDIA_TYPE)
    ticket = Ticket(
        rid=rid, pipeline=pipeline, route=Route(()), created=now, deadline=now, request=empty, front=front, nonce=nonce
    )
    with suppress(InvalidRequest):
        request = decode_request(data)
        encode_request(request)  # JSON may hold what has no digest
        ticket = replace(ticket, digest=digest(request), tenant=request.tenant)
    return Record(ticket=ticket, state=state, failure=failure)


def bury(pipeline: str, rid: str, data: bytes, failure: Failure, *, nonce: str, now: float) -> tuple[Effect, ...]:
    """Effects that replace a record which nobody can read by one that has failed of that.

    What it was is kept as the input of its dead letter.
    """
    record = unadmitted_record(pipeline, rid, RequestState.FAILED, failure, nonce=nonce, now=now)
    payload = Payload.inline(data[:INLINE_LIMIT], "application/octet-stream")
    dead = replace(record, ticket=replace(record.ticket, request=payload), dead=True)
    return (SaveRecord(dead), *end_again(dead))


def lapse(pipeline: str, rid: str, *, nonce: str, now: float) -> tuple[Effect, ...]:
    """Effects that end a request as expired whose record was open for so long that it is gone."""
    failure = Failure.of(DeadlineExceeded())
    record = unadmitted_record(pipeline, rid, RequestState.EXPIRED, failure, nonce=nonce, now=now)
    return (CreateRecord(record), *end_again(record))


def check_same(existing: Record, mine: Record) -> None:
    """Raises RequestConflict when an id is taken by another request; one with the same nonce is of the very same call."""
    theirs, ours = existing.ticket, mine.ticket
    if theirs.nonce != ours.nonce and (theirs.digest, theirs.tenant) != (ours.digest, ours.tenant):
        raise RequestConflict(f"request id {mine.rid!r} was used for a different request")


def attach_effects(existing: Record) -> tuple[Effect, ...]:
    """Decide what a client that attaches to a request does for it.

    An open request: its admitter may have died before its timer was set or all tasks were queued, so they are published
    again, under the message ids of the current run; dedupe drops what is there. When nothing is queued after that, `redrive`.
    """
    ticket = existing.ticket
    tasks = () if existing.state.terminal else tuple(entry_tasks(ticket, ticket.created))
    return (*timer_effects(existing), *tasks)


def timer_effects(existing: Record) -> tuple[Effect, ...]:
    """Set the timer of a request as its record says; one that has ended loses it, and all that is queued.

    Among that may be the event that would have had the rest of the end done: so that is done, too.
    """
    return end_again(existing) if existing.state.terminal else (ScheduleDeadline(existing.ticket),)
