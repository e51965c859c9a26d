"""The ledger: one record a request, written by compare-and-set only. Nobody watches it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from omnibus.broker import bucket
from omnibus.broker.bucket import Bucket, transact
from omnibus.broker.connection import Connection
from omnibus.errors import InvalidRequest, PayloadLost, Unreadable
from omnibus.requests.record import Record
from omnibus.requests.state import RequestState
from omnibus.wire import codec, stores
from omnibus.wire.envelope import Ticket
from omnibus.wire.names import check_name
from omnibus.wire.payload import Payload

MOST_LOOKED_AT = 1024
"""Revisions of the ledger that a list of the latest requests goes back, at the most."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record and the revision that the next write must name."""

    record: Record
    revision: int


class _State(msgspec.Struct):
    """The part of a record that tells whether it has ended."""

    state: RequestState = RequestState.OPEN


class Ledger:
    """Records of the requests of one pipeline. All methods raise BrokerUnavailable, those that read Unreadable."""

    def __init__(self, connection: Connection, pipeline: str) -> None:
        self._clock = connection.clock
        self._bucket = Bucket(connection, stores.requests_bucket(pipeline))

    async def read(self, rid: str) -> StoredRecord | None:
        """The record, None when there is none (any more): also right after its creation, on whatever copy it is read."""
        return _decoded(rid, await self._bucket.get_confirmed(check_name(rid, "rid")))

    async def read_latest(self, rid: str) -> StoredRecord | None:
        """The same as the ledger's leader has it: for what a write of a moment ago must not be undone by."""
        return _decoded(rid, await self._bucket.get_latest(check_name(rid, "rid")))

    async def open_among(self, rids: Collection[str]) -> set[str]:
        """Those of which the ledger, on any of its copies, has a record that is open; some may have ended a moment ago."""
        found = await self._bucket.get_all(sorted(rids))
        return {rid for rid, value in found.items() if _is_open(value)}

    async def latest(
        self, limit: int, wanted: Callable[[Record], bool] = lambda _record: True, *, most: int = MOST_LOOKED_AT
    ) -> list[Record]:
        """At most `limit` of the records that are `wanted`, that which was written last first.

        It looks at the last `most` revisions, whatever the ledger holds; records that cannot be read are left out.
        """
        found: dict[str, Record] = {}
        async with aclosing(self._bucket.newest(most)) as entries:
            async for entry in entries:
                with suppress(InvalidRequest):
                    record: Record = codec.decode(entry.value, Record)
                    if record.rid == entry.key and wanted(record):
                        found.setdefault(record.rid, record)
                if len(found) >= limit:
                    break
        return list(found.values())

    async def request(self, ticket: Ticket) -> Payload:
        """The request of a ticket, which the record has where the ticket was sent on without it; one direct get then.

        Raises PayloadLost when the request has ended, or is another one by now.
        """
        if ticket.has_request:
            return ticket.request
        entry = _decoded(ticket.rid, await self._bucket.get(ticket.rid))
        if entry is None or entry.record.nonce != ticket.nonce or not entry.record.ticket.has_request:
            raise PayloadLost(f"the record of request {ticket.rid!r} has its input no more")
        return entry.record.ticket.request

    async def transact(
        self, rid: str, decide: Callable[[StoredRecord | None], Awaitable[T]], *, latest: bool = False
    ) -> T:
        """Have `decide` read a record, decide and write it under its revision; returns its result.

        `decide` is called again, with the record as it is then, whenever another writer was first. Raises RevisionConflict when
        that happens too often. `latest`: read the leader's copy, for decisions that a write of a moment ago would change.
        """

        async def attempt() -> T:
            return await decide(await (self.read_latest(rid) if latest else self.read(rid)))

        return await transact(attempt, f"the record of request {rid!r}")

    async def create(self, record: Record) -> int:
        """Create a record; raises RevisionConflict when the id is taken."""
        return await self._bucket.create(record.rid, codec.encode(record), ttl=record.lifetime(self._clock.now()))

    async def save(self, record: Record, revision: int, *, unread: bool = False) -> int:
        """Replace the record that has this revision; raises RevisionConflict when another writer was first.

        `unread`: without a look at what is there then, for a role that reads no records: a write of one's own whose answer was
        lost is a conflict, too.
        """
        write = self._bucket.replace if unread else self._bucket.update
        return await write(record.rid, codec.encode(record), revision, ttl=record.lifetime(self._clock.now()))


def _is_open(value: bytes) -> bool:
    """Whether the record in these bytes is open; one that cannot be read is none."""
    with suppress(InvalidRequest):
        return not codec.decode(value, _State).state.terminal
    return False


def _decoded(rid: str, entry: bucket.BucketEntry | None) -> StoredRecord | None:
    """The record under a key; it must be that of the request which the key names."""
    if entry is None:
        return None
    try:
        record: Record = codec.decode(entry.value, Record)
        why = None if record.rid == rid else f"it is the record of {record.rid!r}"
    except InvalidRequest as error:
        why = error.message
    if why is not None:
        raise Unreadable(
            f"the record of request {rid!r} cannot be read: {why}", data=entry.value, revision=entry.revision
        )
    return StoredRecord(record, entry.revision)
