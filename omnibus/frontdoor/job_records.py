"""Jobs of one kind, which outlive the process that took them: records in a bucket, and a queue of those that have not ended.

The message comes before the record: no job that can be found was forgotten by its runners. It only names the job, so that it
does not restore one that was deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import msgspec

from omnibus.broker.bucket import Bucket, transact
from omnibus.broker.connection import Connection
from omnibus.errors import OmnibusError, RevisionConflict
from omnibus.files.tenant_records import TenantRecords

UNRECORDED = 30.0
"""Seconds after its message in which a job's record may still be on its way; longer than the retries of its writing."""


class JobRecord(Protocol):
    """The fields that every job's record has."""

    @property
    def id(self) -> str: ...
    @property
    def owner(self) -> str | None:
        """The tenant whose key made it; None where no keys are asked for."""

    @property
    def pipeline(self) -> str: ...
    @property
    def created(self) -> float:
        """Seconds since the epoch, by the server's clock, as all times."""

    @property
    def expires(self) -> float: ...
    @property
    def ended(self) -> float | None: ...


class QueuedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job in the queue of those that have not ended."""

    id: str
    owner: str | None


R = TypeVar("R", bound=JobRecord)


class JobRecords(Generic[R]):
    """The records of one kind of jobs. Every method raises BrokerUnavailable; tenants see no job but their own."""

    def __init__(
        self, connection: Connection, bucket: str, prefix: str, kind: type[R], unknown: Callable[[str], OmnibusError]
    ) -> None:
        """Arguments as of `TenantRecords`."""
        self.connection, self.bucket = connection, Bucket(connection, bucket)
        self.records = TenantRecords(self.bucket, prefix, kind, unknown)
        self._unknown = type(unknown(""))

    def now(self) -> float:
        """The time by the server's clock."""
        return self.connection.clock.now()

    async def enqueue(self, record: R, subject: str) -> None:
        """Queue a job, on its subject."""
        # Without a Msg-Id: that of an earlier attempt, which wrote no record, may have left the queue already.
        queued = msgspec.msgpack.encode(QueuedJob(id=record.id, owner=record.owner))
        await self.connection.js_publish(subject, queued)

    async def create(self, record: R) -> R:
        """Store a new record; the stored one where there is one of its id."""
        try:
            await self.bucket.create(self.key(record), msgspec.msgpack.encode(record), ttl=self.left(record))
        except RevisionConflict:
            return await self.find(record.owner, record.id)
        return record

    async def find(self, owner: str | None, job_id: str) -> R:
        """A tenant's job; raises the error of an unknown one."""
        return await self.records.find(owner, job_id)

    async def known(self, owner: str | None, job_id: str) -> R | None:
        """A tenant's job, None when there is none."""
        try:
            return await self.find(owner, job_id)
        except self._unknown:
            return None

    async def change(self, record: R, decide: Callable[[R], R]) -> R | None:
        """Replace a record by what `decide` makes of it as it is now; None when it was deleted, or has expired."""

        async def attempt() -> R | None:
            try:
                entry = await self.records.entry(record.owner, record.id)
            except self._unknown:
                return None
            found = self.records.decode(entry.value)
            changed = decide(found)
            if changed != found:
                data = msgspec.msgpack.encode(changed)
                await self.bucket.update(entry.key, data, entry.revision, ttl=self.left(found))
            return changed

        return await transact(attempt, record.id)

    def key(self, record: R) -> str:
        """The key of a record in its bucket."""
        return self.records.key(record.owner, record.id)

    def left(self, record: R) -> float:
        """Seconds that a record has yet."""
        return max(record.expires - self.now(), 1.0)
