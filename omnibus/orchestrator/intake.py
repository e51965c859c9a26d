"""Raw requests: a message on `omni.<pipeline>.request.<rid>` is served like a request over HTTP."""

from __future__ import annotations

import asyncio
import secrets

from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.broker.delivery import Delivery
from omnibus.errors import (
    DeadlineExceeded,
    Overloaded,
    RequestConflict,
    RevisionConflict,
    Unreadable,
)
from omnibus.ledger.acceptance import admit
from omnibus.ledger.overload import Backlog
from omnibus.ledger.performer import Performer
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.tracing import TRACE_HEADERS
from omnibus.payloads.store import PayloadStore
from omnibus.pipeline.spec import OVERFLOW_LANE, PipelineSpec
from omnibus.requests.admission import check_same, new_record, timeout_of, timer_effects, unadmitted_record
from omnibus.requests.advance import end_notice, purge_of
from omnibus.requests.effects import Notify
from omnibus.requests.record import Record
from omnibus.requests.request_checks import validate
from omnibus.requests.request_files import check_files
from omnibus.requests.state import RequestState
from omnibus.wire import subjects
from omnibus.wire.failure import Failure
from omnibus.wire.names import check_name, is_name
from omnibus.wire.out import EndNotice, Refused
from omnibus.wire.request import REPLY_HEADER, REQUEST_MEDIA_TYPE, Request, decode_request, encode_request

_PUT_BACK = 0.5
"""Seconds after which a request that finds the pipeline full is looked at again."""

log = get_logger(__name__)


class Intake:
    """Admits the raw requests of one pipeline."""

    def __init__(self, connection: Connection, performer: Performer, spec: PipelineSpec) -> None:
        self._performer, self._spec = performer, spec
        self._backlog = Backlog(performer.queue)
        self._store = PayloadStore(connection, spec.name)

    async def handle(self, delivery: Delivery) -> bool:
        """Admit one request; False when it was put back. Raises BrokerError, and an error that ends the request: see `give_up`.

        While the pipeline is at its bound, requests are put back: their stream fills up to its own bound, and then refuses.
        """
        rid = subjects.parse_rid(delivery.subject)
        if not is_name(rid):  # no record and no subject can bear such a name
            log.warning(LogEvent.REQUEST_REFUSED, subject=delivery.subject)
            return True
        try:
            await self._admit(delivery, rid)
        except Overloaded:
            # It keeps its place among those in hand meanwhile, so that few are looked at in that time.
            await asyncio.sleep(_PUT_BACK)
            await delivery.nak()
            return False
        return True

    async def _admit(self, delivery: Delivery, rid: str) -> None:
        """Its time counts from its acceptance: when the broker stored it."""
        front, request = _front_of(delivery), _with_trace(decode_request(delivery.data), delivery)
        check_name(delivery.headers.get(REPLY_HEADER, "none"), REPLY_HEADER)
        route = validate(self._spec, request)
        deadline = delivery.stored_at + timeout_of(self._spec, request)
        if self._performer.clock.now() >= deadline:
            raise DeadlineExceeded
        await self._backlog.take_slot(self._spec, OVERFLOW_LANE)  # what its tenant has open is not known here
        attached = True
        try:
            await check_files(request, within=deadline - self._performer.clock.now())
            payload = await self._store.put(encode_request(request), REQUEST_MEDIA_TYPE, rid=rid)
            record = new_record(
                self._spec, request, rid=rid, payload=payload, nonce=_nonce(delivery), now=delivery.stored_at, front=front,
                lane=request.lane, route=route,
            )  # fmt: skip
            admitted = await admit(self._performer, record)
            attached = admitted.attached
        finally:
            self._backlog.admission_over(admitted=not attached)
        if attached:
            await self._notify(front, _notice_to(front, admitted.record))

    async def give_up(self, delivery: Delivery, error: Exception, *, dead: bool) -> None:  # noqa: ARG002 it never ran
        """End a request that cannot be served by a `failed` record, and one that waited beyond its deadline as `expired`.

        Where the id is another request's, the producer gets a refusal.
        """
        rid, front, failure = subjects.parse_rid(delivery.subject), _front_of(delivery), Failure.of(error)
        state = RequestState.EXPIRED if isinstance(error, DeadlineExceeded) else RequestState.FAILED
        log.warning(LogEvent.REQUEST_REFUSED, request=rid, error=failure.message)
        record = unadmitted_record(
            self._spec.name, rid, state, failure, data=delivery.data,
            nonce=secrets.token_hex(8), now=self._performer.clock.now(), front=front,
        )  # fmt: skip
        try:
            await self._performer.ledger.create(record)
        except RevisionConflict:
            await self._notify(front, await self._notice(record, failure))
            return
        # Of an attempt to admit it that went wrong half-way.
        await self._performer.perform((purge_of(record, stored=delivery.num_delivered > 1),))
        await self._notify(front, end_notice(record))

    async def _notice(self, mine: Record, failure: Failure) -> EndNotice | Refused | None:
        """Make the notice for a taken id: the end of the same request, nothing while it is open, or a refusal."""
        try:
            existing = await self._performer.ledger.read(mine.rid)
            if existing is not None:
                check_same(existing.record, mine)
                # Of an admission that died once the record was there: without its timer it would stay open.
                await self._performer.perform(timer_effects(existing.record))
                return _notice_to(mine.ticket.front, existing.record)
        except (RequestConflict, Unreadable) as error:
            failure = Failure.of(error)
        return Refused(rid=mine.rid, failure=failure)

    async def _notify(self, front: str | None, message: EndNotice | Refused | None) -> None:
        if front is not None and message is not None:
            await self._performer.perform((Notify(front, message),))


def _notice_to(front: str | None, record: Record) -> EndNotice | None:
    """The end of a request that was asked for again; None while it is open, and for its own producer, which has it again."""
    return end_notice(record) if record.state.terminal and front != record.ticket.front else None


def _nonce(delivery: Delivery) -> str:
    """A redelivery is the same call, and nothing else is.

    A stream that is made anew counts from 1 again, so the sequence alone would make a later request pass for an earlier one
    under its id.
    """
    return f"{delivery.stream_seq}-{int(delivery.stored_at * 1e6)}"


def _with_trace(request: Request, delivery: Delivery) -> Request:
    """The request with the trace context of its message's headers, where it names none itself."""
    sent = {name: delivery.headers[name] for name in TRACE_HEADERS if name in delivery.headers}
    return replace(request, trace=sent) if sent and not request.trace else request


def _front_of(delivery: Delivery) -> str | None:
    """The token that the producer listens to; None for one that is no name, too."""
    front = delivery.headers.get(REPLY_HEADER)
    return front if front is not None and is_name(front) else None
