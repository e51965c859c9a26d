"""The ledger: one record a request, written by compare-and-set only. Nobody watches it."""

from __future__ import annotations

from dataclasses import dataclass

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.requests.record import Record
from omnibus.wire import codec, subjects


@dataclass(frozen=True, slots=True)
class Entry:
    """A record and the revision that the next write must name."""

    record: Record
    revision: int


class Ledger:
    """Records of the requests of one pipeline. All methods raise BrokerUnavailable."""

    def __init__(self, connection: Connection, pipeline: str) -> None:
        self._clock = connection.clock
        self._bucket = Bucket(connection, subjects.requests_bucket(pipeline))

    async def read(self, rid: str) -> Entry | None:
        """The record, None when there is none (any more): also right after its creation, on whatever copy it is read."""
        entry = await self._bucket.get_confirmed(subjects.check_name(rid, "rid"))
        if entry is None or entry.value is None:
            return None
        return Entry(codec.decode(entry.value, Record), entry.revision)

    async def read_latest(self, rid: str) -> Entry | None:
        """The same as the ledger's leader has it: for what a write of a moment ago must not be undone by."""
        entry = await self._bucket.get_latest(subjects.check_name(rid, "rid"))
        return Entry(codec.decode(entry.value, Record), entry.revision) if entry is not None else None

    async def create(self, record: Record) -> int:
        """Create a record; raises RevisionConflict when the id is taken."""
        return await self._bucket.create(record.rid, codec.encode(record), ttl=record.lifetime(self._clock.now()))

    async def save(self, record: Record, revision: int) -> int:
        """Replace the record that has this revision; raises RevisionConflict when another writer was first."""
        return await self._bucket.update(
            record.rid, codec.encode(record), revision, ttl=record.lifetime(self._clock.now())
        )
