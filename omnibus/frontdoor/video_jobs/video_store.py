"""Videos of all tenants: jobs, whose requests and files are in the store of files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

from msgspec.structs import replace

from omnibus.broker.bucket import transact
from omnibus.broker.connection import Connection
from omnibus.broker.streamed_objects import StreamedObjects
from omnibus.errors import RevisionConflict
from omnibus.files.file_record import FileRecord, UnknownFile
from omnibus.files.file_store import FileStore
from omnibus.files.keyed_ids import KeyedIds
from omnibus.files.tenant_records import Page, new_id
from omnibus.frontdoor.job_records import JobRecords
from omnibus.frontdoor.video_jobs.video_record import PREFIX, VIDEO_PURPOSE, VideoRecord, unknown_video
from omnibus.wire import stores, subjects
from omnibus.wire.request import Request, decode_request, encode_request


class VideoStore(JobRecords[VideoRecord]):
    """Keeps videos over one connection. Every method raises BrokerUnavailable; tenants see no video but their own."""

    def __init__(self, connection: Connection, files: FileStore) -> None:
        super().__init__(connection, stores.VIDEOS_BUCKET, PREFIX, VideoRecord, unknown_video)
        self._requests = StreamedObjects(connection, stores.FILES_BUCKET)
        self._files, self._ids = files, KeyedIds(self.bucket)

    async def begin(self, new: VideoRecord, request: Request) -> tuple[VideoRecord, bool]:
        """Queue a new video under an id of its own and store it; the one that its idempotency key has where it has one.

        Beside it, whether it was stored by this call.

        A key whose video is removed meanwhile makes a new one: its id is looked at once more when the record is there.
        """

        data = encode_request(request)

        async def attempt() -> tuple[VideoRecord, bool]:
            made = new_id(PREFIX, self.now())
            made = await self._ids.id_for(new.key, made, self.left(new)) if new.key else made
            record = replace(new, id=made, nbytes=len(data))
            stored = await self._added(record, data)
            is_new = stored is record
            if not new.key or await self._ids.is_of(new.key, stored.id):
                return stored, is_new
            if is_new:
                await self._discard(record)
            raise RevisionConflict("the video of this key was removed meanwhile")

        return await transact(attempt, "the video of an idempotency key")

    async def _added(self, record: VideoRecord, data: bytes) -> VideoRecord:
        """The stored video of this id, which is queued and stored now where there is none; raises QuotaExceeded."""
        if (found := await self.known(record.owner, record.id)) is not None:
            return found
        await self._files.check_room(record.owner, sum(one.nbytes for one in await self.records.all(record.owner)))
        await self._requests.store(_request_name(record), _whole(data), ttl=self.left(record))
        await self.enqueue(record, subjects.queued_video(record.id))
        stored = await self.create(record)
        if _request_name(stored) != _request_name(record):
            await self._requests.delete(_request_name(record))
        return stored

    async def page(self, owner: str | None, *, after: str | None, limit: int, oldest_first: bool) -> Page[VideoRecord]:
        """At most `limit` of a tenant's videos, behind the one with the id `after`."""
        return await self.records.page(owner, after=after, limit=limit, oldest_first=oldest_first)

    async def request(self, record: VideoRecord) -> Request:
        """The request that a video is made by; raises PayloadLost."""
        pieces = [piece async for piece in self._requests.read(_request_name(record))]
        return decode_request(b"".join(pieces))

    async def keep_file(self, record: VideoRecord, data: bytes) -> None:
        """Store the file of a video, unless it is there."""
        await self._files.add_once(
            record.owner, record.file_id, _whole(data), filename=f"{record.id}.mp4", purpose=VIDEO_PURPOSE,
            lifetime=self.left(record),
        )  # fmt: skip

    async def file(self, record: VideoRecord) -> FileRecord:
        """The file of a completed video; raises UnknownFile."""
        return await self._files.find(record.owner, record.file_id)

    async def remove(self, record: VideoRecord) -> None:
        """Remove a video with its file; the record goes before it: what its runner stores after that, it removes itself.

        Its idempotency key comes first, and makes a new video from then on.
        """
        if record.key:
            await self._ids.free(record.key, record.id)
        await self._discard(record)
        await self.remove_file(record)

    async def _discard(self, record: VideoRecord) -> None:
        await self.bucket.delete(self.key(record))
        await self._requests.delete(_request_name(record))

    async def remove_file(self, record: VideoRecord) -> None:
        """Remove the file of a video, if there is one."""
        with suppress(UnknownFile):
            await self._files.delete(record.owner, record.file_id)


def _request_name(record: VideoRecord) -> str:
    """The name of what a video is made by: two calls at once under one key may ask for different ones."""
    return f"{record.id}.{record.fingerprint or 'request'}"


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data
