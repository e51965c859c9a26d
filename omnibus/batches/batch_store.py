"""The batches of all tenants: records in a bucket, and a queue of those that have not ended.

The message comes first and holds the whole record: a batch that was queued runs, also when the front door that took it dies
before it has written the record.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from omnibus.batches.batch_record import KEPT, LONGEST_WINDOW, PREFIX, BatchRecord, UnknownBatch, unknown_batch
from omnibus.broker.bucket import Bucket, transact
from omnibus.broker.connection import Connection
from omnibus.errors import RevisionConflict
from omnibus.files.keyed_ids import KeyedIds
from omnibus.files.tenant_records import Page, TenantRecords, new_id
from omnibus.wire import stores, subjects

_encode = msgspec.msgpack.Encoder().encode


class BatchStore:
    """Keeps batches over one connection. Every method raises BrokerUnavailable; tenants see no batch but their own."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self.clock = connection, connection.clock
        bucket = Bucket(connection, stores.BATCHES_BUCKET)
        self._records = TenantRecords(bucket, PREFIX, BatchRecord, unknown_batch)
        self._ids = KeyedIds(bucket)
        self.decode = self._records.decode
        """A record out of a message of the queue."""

    async def new_id(self, key: str = "") -> str:
        """The id of a batch that is made now; the same one for a `key`, which stands for the caller's idempotency key."""
        made = new_id(PREFIX, self.clock.now())
        return await self._ids.id_for(key, made, LONGEST_WINDOW + KEPT) if key else made

    async def known(self, tenant: str | None, batch_id: str) -> BatchRecord | None:
        """A batch, None where there is none."""
        try:
            return await self.find(tenant, batch_id)
        except UnknownBatch:
            return None

    async def create(self, record: BatchRecord) -> BatchRecord:
        """Queue a batch and store its record: it runs when this returns, and may when this raises.

        Returns the stored one, which is another caller's where both came with one key at the same time.
        """
        data = _encode(record)
        await self._connection.js_publish(subjects.batch(record.id), data, record.id)
        return await self.restore(record)

    async def restore(self, record: BatchRecord) -> BatchRecord:
        """The stored record of a batch, which is stored now unless one is there."""
        try:
            key = self._records.key(record.tenant, record.id)
            await self._records.bucket.create(key, _encode(record), ttl=record.lifetime(self.clock.now()))
        except RevisionConflict:
            pass
        return await self.find(record.tenant, record.id)

    async def find(self, tenant: str | None, batch_id: str) -> BatchRecord:
        """A batch; raises UnknownBatch."""
        return await self._records.find(tenant, batch_id)

    async def open_of(self, tenant: str | None) -> int:
        """How many batches of a tenant have not ended, and are not over."""
        now = self.clock.now()
        return sum(not record.ended and record.expires > now for record in await self._records.all(tenant))

    async def page(self, tenant: str | None, *, after: str | None, limit: int) -> Page[BatchRecord]:
        """At most `limit` of a tenant's batches behind the one with the id `after`, the newest first."""
        return await self._records.page(tenant, after=after, limit=limit)

    async def change(
        self, tenant: str | None, batch_id: str, decide: Callable[[BatchRecord], BatchRecord]
    ) -> BatchRecord:
        """The record as `decide` has changed it, by compare-and-set; raises what that raises, and UnknownBatch."""
        key = self._records.key(tenant, batch_id)

        async def attempt() -> BatchRecord:
            entry = await self._records.bucket.get_latest(key)
            if entry is None:
                raise unknown_batch(batch_id)
            known = self._records.decode(entry.value)
            record = decide(known)
            if record != known:
                ttl = record.lifetime(self.clock.now())
                await self._records.bucket.update(key, _encode(record), entry.revision, ttl)
            return record

        return await transact(attempt, f"the record of batch {batch_id!r}")
