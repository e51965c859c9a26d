"""The files of all tenants: records in a bucket, bytes in an object store. Both live as long as the file, and no longer.

Bytes are stored before their record and removed after it: a file that can be found can be read.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from omnibus.broker.bucket import MOST_AT_ONCE, Bucket
from omnibus.broker.connection import Connection
from omnibus.broker.streamed_objects import StreamedObjects
from omnibus.errors import BrokerError
from omnibus.files.file_record import (
    FileRecord,
    QuotaExceeded,
    UnknownFile,
    new_file_id,
    record_key,
    tenant_token,
)
from omnibus.wire import subjects


@dataclass(frozen=True, slots=True)
class FilePage:
    """A part of a list of files, in order."""

    files: Sequence[FileRecord]
    has_more: bool


class FileStore:
    """Keeps files over one connection. Every method raises BrokerUnavailable; tenants see no file but their own."""

    def __init__(self, connection: Connection, *, quota: int) -> None:
        """`quota`: bytes that the files of a tenant may take together."""
        self._records = Bucket(connection, subjects.FILES_BUCKET)
        self._bytes = StreamedObjects(connection, subjects.FILES_BUCKET)
        self._clock, self._quota = connection.clock, quota

    async def add(
        self, tenant: str | None, pieces: AsyncIterable[bytes], *, filename: str, purpose: str, lifetime: float
    ) -> FileRecord:
        """Store a file for `lifetime` seconds; raises QuotaExceeded, and then nothing of it stays.

        Uploads at the same time do not see each other, and may pass the quota together.
        """
        left = self._quota - await self._taken(tenant)
        created = self._clock.now()
        file_id = new_file_id(created)
        nbytes = await self._bytes.store(file_id, _bounded(pieces, left, self._quota), ttl=lifetime)
        record = FileRecord(
            id=file_id, nbytes=nbytes, created=created, expires=created + lifetime, filename=filename, purpose=purpose
        )
        remaining = max(record.expires - self._clock.now(), 1.0)  # its bytes live from the beginning of the upload on
        try:
            await self._records.create(record_key(tenant, file_id), msgspec.msgpack.encode(record), ttl=remaining)
        except BaseException:  # also a caller that leaves: nobody could find these bytes, and nothing counts them
            with suppress(BrokerError):
                await asyncio.shield(self._remove(tenant, file_id))
            raise
        return record

    async def find(self, tenant: str | None, file_id: str) -> FileRecord:
        """The record of a file; raises UnknownFile."""
        found = await self._records.get_confirmed(record_key(tenant, file_id))
        record = None if found is None else _record(found.value)
        if record is None or record.expires <= self._clock.now():
            raise UnknownFile(f"there is no file {file_id!r}", param="file_id")
        return record

    def read(self, record: FileRecord, first: int = 0, nbytes: int | None = None) -> AsyncIterator[bytes]:
        """The bytes of a file from `first` on, all or `nbytes` of them; raises PayloadLost when it was deleted meanwhile."""
        return self._bytes.read(record.id, first, nbytes)

    async def delete(self, tenant: str | None, file_id: str) -> None:
        """Remove a file; raises UnknownFile."""
        await self.find(tenant, file_id)
        await self._remove(tenant, file_id)

    async def _remove(self, tenant: str | None, file_id: str) -> None:
        """The record goes first: one whose acknowledgement was lost may be there, too."""
        await self._records.delete(record_key(tenant, file_id))
        await self._bytes.delete(file_id)

    async def page(
        self, tenant: str | None, *, after: str | None, limit: int, oldest_first: bool, purpose: str | None
    ) -> FilePage:
        """At most `limit` of a tenant's files, behind the one with the id `after`, in the order of their making."""
        keys = await self._keys(tenant)
        if not oldest_first:
            keys.reverse()
        if after is not None:
            keys = _behind(keys, record_key(tenant, after), oldest_first=oldest_first)
        found: list[FileRecord] = []
        async for record in self._of(keys):
            if purpose in (None, record.purpose):
                if len(found) == limit:
                    return FilePage(found, has_more=True)
                found.append(record)
        return FilePage(found, has_more=False)

    async def _taken(self, tenant: str | None) -> int:
        """Bytes that a tenant's files take."""
        return sum([record.nbytes async for record in self._of(await self._keys(tenant))])

    async def _keys(self, tenant: str | None) -> list[str]:
        return await self._records.keys(f"{tenant_token(tenant)}.")

    async def _of(self, keys: Sequence[str]) -> AsyncIterator[FileRecord]:
        """The records of those keys that have one, in their order."""
        for first in range(0, len(keys), MOST_AT_ONCE):
            some = keys[first : first + MOST_AT_ONCE]
            values = await self._records.get_all(some)
            for key in some:
                if key in values:
                    yield _record(values[key])


def _behind(keys: list[str], key: str, *, oldest_first: bool) -> list[str]:
    """The keys behind one that need not be there any more."""
    if oldest_first:
        return keys[bisect.bisect_right(keys, key) :]
    return [other for other in keys if other < key]


async def _bounded(pieces: AsyncIterable[bytes], most: int, quota: int) -> AsyncIterator[bytes]:
    async for piece in pieces:
        most -= len(piece)
        if most < 0:
            raise QuotaExceeded(f"the files of a tenant may have {quota} bytes together: delete some", param="file")
        yield piece


def _record(value: bytes) -> FileRecord:
    return msgspec.msgpack.decode(value, type=FileRecord)
