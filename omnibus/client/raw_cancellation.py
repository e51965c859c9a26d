"""Cancelling a raw request that nobody has admitted yet: it ends where it waits."""

from __future__ import annotations

import secrets

from omnibus.broker.connection import Connection
from omnibus.errors import RequestCancelled
from omnibus.ledger.performer import Performer
from omnibus.ledger.raw_requests import RawRequests
from omnibus.requests.admission import unadmitted_record
from omnibus.requests.effects import Notify, Purge
from omnibus.requests.state import RequestState
from omnibus.wire.failure import Failure
from omnibus.wire.out import EndNotice
from omnibus.wire.subjects import is_name


async def cancel_raw(connection: Connection, performer: Performer, pipeline: str, rid: str, tenant: str | None) -> bool:
    """End a request that waits in the stream of raw ones, of this tenant where one is given; whether there was any.

    Raises RevisionConflict when somebody has admitted it meanwhile. An orchestrator that has it in hand finds its record,
    and admits it no more.
    """
    waiting = RawRequests(connection, pipeline)
    if await performer.ledger.read(rid) is not None or (raw := await waiting.find(rid)) is None:
        return False
    front = raw.front if raw.front is not None and is_name(raw.front) else None
    record = unadmitted_record(
        pipeline, rid, RequestState.CANCELLED, Failure.of(RequestCancelled()),
        data=raw.data, nonce=secrets.token_hex(8), now=connection.clock.now(), front=front,
    )  # fmt: skip
    if tenant not in (None, record.tenant):
        return False
    await performer.ledger.create(record)
    if front is not None:
        await performer.perform((Notify(front, EndNotice(rid=rid, state=record.state)),))
    await waiting.remove(rid)
    # Of an orchestrator that died before it came to the record.
    await performer.perform((Purge(rid, queued=False, stored=True),))
    return True
