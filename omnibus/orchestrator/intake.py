"""Raw requests: whoever publishes to `omni.<pipeline>.request.<rid>` is served as over any other door."""

from __future__ import annotations

import asyncio
import secrets
import time

from omnibus.broker.admission import admit
from omnibus.broker.backlog import Backlog
from omnibus.broker.connection import Connection
from omnibus.broker.delivery import Delivery
from omnibus.broker.effects import Performer
from omnibus.errors import BrokerError, InvalidName, RequestError, RevisionConflict
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.payloads.store import PayloadStore
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.admission import new_record, refused_record
from omnibus.requests.effects import Tell
from omnibus.requests.record import Record
from omnibus.wire import subjects
from omnibus.wire.failure import Failure
from omnibus.wire.out import Ended, Refused
from omnibus.wire.request import REQUEST_MEDIA_TYPE, decode_request, encode_request

REPLY_HEADER = "Omni-Reply"
"""Names the token of the `out` subject that the producer listens to."""

ATTEMPTS = 5
"""Deliveries of one request after which an error that nobody foresaw ends it as failed."""
_PUT_BACK = 0.5
"""Seconds after which a request that finds the pipeline full is looked at again."""

log = get_logger(__name__)


class Intake:
    """Admits the raw requests of one pipeline."""

    def __init__(self, connection: Connection, performer: Performer, spec: PipelineSpec) -> None:
        self._performer, self._spec = performer, spec
        self._backlog = Backlog(performer.queue)
        self._store = PayloadStore(connection, spec.name)

    async def handle(self, delivery: Delivery) -> None:
        """Admit one request; acknowledged when this returns. Raises BrokerError: then it is delivered again.

        What cannot be served ends as a `failed` record under its id, or, where the id is another request's, as a refusal
        to whoever listens. While the pipeline is at its bound, requests are put back: their stream fills up to its own
        bound, and then refuses.
        """
        if await self._backlog.open_requests() >= self._spec.max_open_requests:
            # It keeps its place among those in hand meanwhile, so that few are looked at in that time.
            await asyncio.sleep(_PUT_BACK)
            await delivery.nak()
            return
        rid = subjects.parse_rid(delivery.subject)
        try:
            subjects.check_name(rid, "rid")
        except InvalidName as error:  # no record and no subject can bear such a name
            log.warning(LogEvent.REQUEST_REFUSED, subject=delivery.subject, error=str(error))
            await delivery.ack()
            return
        try:
            await self._admit(delivery, rid)
        except RequestError as error:
            await self._refuse(delivery, rid, error)
        except Exception as error:
            retryable = isinstance(error, BrokerError) and error.retryable
            if retryable or delivery.num_delivered < ATTEMPTS:
                raise
            await self._refuse(delivery, rid, error)
        await delivery.ack()

    async def _admit(self, delivery: Delivery, rid: str) -> None:
        front = _front_of(delivery)
        admitted = await admit(self._performer, await self._record(delivery, rid, front))
        self._backlog.add()
        if admitted.attached and admitted.record.state.terminal:
            await self._tell(front, Ended(rid=rid, state=admitted.record.state))

    async def _record(self, delivery: Delivery, rid: str, front: str | None) -> Record:
        request = decode_request(delivery.data)
        payload = await self._store.put(encode_request(request), REQUEST_MEDIA_TYPE, rid=rid)
        # A redelivery is the same call: its nonce is that of the message.
        nonce = f"{delivery.stream_seq}"
        return new_record(
            self._spec, request, rid=rid, payload=payload, nonce=nonce, now=time.time(), front=front
        )  # fmt: skip

    async def _refuse(self, delivery: Delivery, rid: str, error: Exception) -> None:
        front, failure = _front_or_none(delivery), Failure.of(error)
        log.warning(LogEvent.REQUEST_REFUSED, request=rid, error=failure.message)
        record = refused_record(self._spec, rid, failure, nonce=secrets.token_hex(8), now=time.time(), front=front)
        try:
            await self._performer.ledger.create(record)
        except RevisionConflict:
            await self._tell(front, Refused(rid=rid, failure=failure))
            return
        await self._tell(front, Ended(rid=rid, state=record.state))

    async def _tell(self, front: str | None, message: Ended | Refused) -> None:
        if front is not None:
            await self._performer.perform((Tell(front, message),))


def _front_of(delivery: Delivery) -> str | None:
    """The token that the producer listens to; raises InvalidName when it is none."""
    front = delivery.headers.get(REPLY_HEADER)
    return subjects.check_name(front, REPLY_HEADER) if front is not None else None


def _front_or_none(delivery: Delivery) -> str | None:
    try:
        return _front_of(delivery)
    except InvalidName:
        return None
