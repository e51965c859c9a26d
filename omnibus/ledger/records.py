"""The ledger: one record a request, written by compare-and-set only. Nobody watches it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from omnibus.broker import bucket
from omnibus.broker.bucket import Bucket, transact
from omnibus.broker.connection import Connection
from omnibus.errors import InvalidRequest, Unreadable
from omnibus.requests.record import Record
from omnibus.wire import codec, subjects

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record and the revision that the next write must name."""

    record: Record
    revision: int


class Ledger:
    """Records of the requests of one pipeline. All methods raise BrokerUnavailable, those that read Unreadable."""

    def __init__(self, connection: Connection, pipeline: str) -> None:
        self._clock = connection.clock
        self._bucket = Bucket(connection, subjects.requests_bucket(pipeline))

    async def read(self, rid: str) -> StoredRecord | None:
        """The record, None when there is none (any more): also right after its creation, on whatever copy it is read."""
        return _decoded(rid, await self._bucket.get_confirmed(subjects.check_name(rid, "rid")))

    async def read_latest(self, rid: str) -> StoredRecord | None:
        """The same as the ledger's leader has it: for what a write of a moment ago must not be undone by."""
        return _decoded(rid, await self._bucket.get_latest(subjects.check_name(rid, "rid")))

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

    async def save(self, record: Record, revision: int) -> int:
        """Replace the record that has this revision; raises RevisionConflict when another writer was first."""
        return await self._bucket.update(
            record.rid, codec.encode(record), revision, ttl=record.lifetime(self._clock.now())
        )


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
