"""The files of all tenants: records in a bucket, bytes in an object store. Both live as long as the file, and no longer.

Bytes are stored before their record and removed after it: a file that can be found can be read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import suppress

import msgspec

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.broker.streamed_objects import StreamedObjects
from omnibus.errors import BrokerError, PayloadLost, RevisionConflict
from omnibus.files.file_record import PREFIX, FileRecord, QuotaExceeded, unknown_file
from omnibus.files.stored_bodies import StoredBodies
from omnibus.files.tenant_records import Page, TenantRecords, new_id
from omnibus.wire import stores


class FileStore:
    """Keeps files over one connection. Every method raises BrokerUnavailable; tenants see no file but their own."""

    def __init__(self, connection: Connection, *, quota: int, storage: StoredBodies | None = None) -> None:
        """`quota`: bytes that the files of a tenant may take together; `storage`: where the bytes of new ones go, by default
        the broker."""
        bucket = Bucket(connection, stores.FILES_BUCKET)
        self._records = TenantRecords(bucket, PREFIX, FileRecord, unknown_file)
        self._bytes = StreamedObjects(connection, stores.FILES_BUCKET)
        self._clock, self._quota, self._storage = connection.clock, quota, storage

    async def add(
        self, tenant: str | None, pieces: AsyncIterable[bytes], *, filename: str, purpose: str, lifetime: float
    ) -> FileRecord:
        """Store a file for `lifetime` seconds; raises QuotaExceeded, and then nothing of it stays.

        Uploads at the same time may pass the quota together while they are under way; what passes it in the end is refused.
        """
        left = await self._left(tenant)
        file_id, bounded = new_id(PREFIX, self._clock.now()), _bounded(pieces, left, self._quota)
        record = await self._stored(file_id, bounded, filename=filename, purpose=purpose, lifetime=lifetime)
        try:
            await self._create(tenant, record)
            await self._check_total(tenant)
        except BaseException:  # also a caller that leaves: nobody could find these bytes, and nothing counts them
            with suppress(BrokerError):
                await asyncio.shield(self._remove(tenant, record))
            raise
        return record

    async def add_once(
        self,
        tenant: str | None,
        file_id: str,
        pieces: AsyncIterable[bytes],
        *,
        filename: str,
        purpose: str,
        lifetime: float,
    ) -> None:
        """Store a file that the server makes, which no quota refuses, under an id of its maker's; nothing where it is there.

        Several may make the same file at once: each stores the same bytes, and one of them the record.
        """
        if await self._records.bucket.get_confirmed(self._records.key(tenant, file_id)) is None:
            record = await self._stored(file_id, pieces, filename=filename, purpose=purpose, lifetime=lifetime)
            with suppress(RevisionConflict):
                await self._create(tenant, record)

    async def check_room(self, tenant: str | None, beside: int = 0) -> None:
        """Raises QuotaExceeded where the files of a tenant, and `beside` so many bytes of others, leave no room for another."""
        if await self._left(tenant) <= beside:
            raise _too_many(self._quota)

    async def _check_total(self, tenant: str | None) -> None:
        """Raises QuotaExceeded where a file that was stored now passes the quota, as others were stored meanwhile."""
        if await self._left(tenant) < 0:
            raise _too_many(self._quota)

    async def _left(self, tenant: str | None) -> int:
        """Bytes of the quota that no file has taken."""
        return self._quota - sum(record.nbytes for record in await self._records.all(tenant))

    async def _stored(
        self, file_id: str, pieces: AsyncIterable[bytes], *, filename: str, purpose: str, lifetime: float
    ) -> FileRecord:
        """The record of a file whose bytes are stored now."""
        created = self._clock.now()
        expires = created + lifetime
        if self._storage is None:
            nbytes = await self._bytes.store(file_id, pieces, ttl=lifetime)
        else:
            nbytes = await self._storage.store(file_id, pieces, expires=expires)
        return FileRecord(
            id=file_id, nbytes=nbytes, created=created, expires=expires, filename=filename, purpose=purpose,
            in_storage=self._storage is not None,
        )  # fmt: skip

    async def _create(self, tenant: str | None, record: FileRecord) -> None:
        remaining = max(record.expires - self._clock.now(), 1.0)  # its bytes live from the beginning of the upload on
        key = self._records.key(tenant, record.id)
        await self._records.bucket.create(key, msgspec.msgpack.encode(record), ttl=remaining)

    async def find(self, tenant: str | None, file_id: str) -> FileRecord:
        """The record of a file; raises UnknownFile."""
        record = await self._records.find(tenant, file_id)
        if record.expires <= self._clock.now():
            raise unknown_file(file_id)
        return record

    def read(self, record: FileRecord, first: int = 0, nbytes: int | None = None) -> AsyncIterator[bytes]:
        """The bytes of a file from `first` on, all or `nbytes` of them; raises PayloadLost when it was deleted meanwhile."""
        if not record.in_storage:
            return self._bytes.read(record.id, first, nbytes)
        wanted = max(record.nbytes - first, 0)
        wanted = wanted if nbytes is None else min(nbytes, wanted)
        return self._named_storage(record).read(record.id, first, wanted, expires=record.expires)

    async def read_whole(self, record: FileRecord) -> bytes:
        """All bytes of a file, which the caller knows to be few; as `read`."""
        return b"".join([piece async for piece in self.read(record)])

    async def delete(self, tenant: str | None, file_id: str) -> None:
        """Remove a file; raises UnknownFile."""
        await self._remove(tenant, await self.find(tenant, file_id))

    async def _remove(self, tenant: str | None, record: FileRecord) -> None:
        """The record goes first: one whose acknowledgement was lost may be there, too."""
        await self._records.bucket.delete(self._records.key(tenant, record.id))
        if record.in_storage:
            await self._named_storage(record).delete(record.id, expires=record.expires)
        else:
            await self._bytes.delete(record.id)

    def _named_storage(self, record: FileRecord) -> StoredBodies:
        """The storage that a file is in; raises PayloadLost where the settings name none any more."""
        if self._storage is None:
            raise PayloadLost(f"file {record.id} is in a storage that OMNIBUS_FILE_STORE does not name any more")
        return self._storage

    async def page(
        self, tenant: str | None, *, after: str | None, limit: int, oldest_first: bool, purpose: str | None
    ) -> Page[FileRecord]:
        """At most `limit` of a tenant's files, behind the one with the id `after`, in the order of their making."""
        return await self._records.page(
            tenant,
            after=after,
            limit=limit,
            oldest_first=oldest_first,
            wanted=lambda one: purpose in (None, one.purpose),
        )


async def _bounded(pieces: AsyncIterable[bytes], most: int, quota: int) -> AsyncIterator[bytes]:
    async for piece in pieces:
        most -= len(piece)
        if most < 0:
            raise _too_many(quota)
        yield piece


def _too_many(quota: int) -> QuotaExceeded:
    return QuotaExceeded(f"the files of a tenant may have {quota} bytes together: delete some", param="file")
