"""Videos of all tenants: records in a bucket, their requests and files in the store of files, and a queue of those to be made.

The message comes before the record: no video that can be found was forgotten by its runners. It only names the video, so that
it does not restore one that was deleted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import msgspec

from omnibus.broker.bucket import Bucket, transact
from omnibus.broker.connection import Connection
from omnibus.broker.streamed_objects import StreamedObjects
from omnibus.errors import RevisionConflict
from omnibus.files.file_record import FileRecord, UnknownFile
from omnibus.files.file_store import FileStore
from omnibus.files.tenant_records import Page, TenantRecords, new_id
from omnibus.frontdoor.video_jobs.video_record import (
    LIFETIME,
    PREFIX,
    VIDEO_PURPOSE,
    UnknownVideo,
    VideoRecord,
    unknown_video,
)
from omnibus.wire import subjects
from omnibus.wire.request import Request, decode_request, encode_request

UNRECORDED = 30.0
"""Seconds after its message in which a video's record may still be on its way; longer than the retries of its writing."""


class QueuedVideo(msgspec.Struct, frozen=True, kw_only=True):
    """A video in the queue of those to be made."""

    id: str
    owner: str | None


class VideoStore:
    """Keeps videos over one connection. Every method raises BrokerUnavailable; tenants see no video but their own."""

    def __init__(self, connection: Connection, files: FileStore) -> None:
        self._bucket = Bucket(connection, subjects.VIDEOS_BUCKET)
        self._records = TenantRecords(self._bucket, PREFIX, VideoRecord, unknown_video)
        self._requests = StreamedObjects(connection, subjects.FILES_BUCKET)
        self._connection, self._files = connection, files

    def now(self) -> float:
        """The time by the server's clock."""
        return self._connection.clock.now()

    async def id_for(self, key: str) -> str:
        """The id of a new video; the same one for a `key`, which stands for the caller's idempotency key, until it is deleted."""
        made = new_id(PREFIX, self.now())
        if not key:
            return made
        entry = _key_entry(key)
        try:
            await self._bucket.create(entry, made.encode(), ttl=LIFETIME)
        except RevisionConflict:
            found = await self._bucket.get_latest(entry)
            return made if found is None else found.value.decode()
        return made

    async def add(self, record: VideoRecord, request: Request) -> VideoRecord:
        """Queue a new video and store it; the stored one where one of its id is there already."""
        if (found := await self.known(record.owner, record.id)) is not None:
            return found
        await self._requests.store(_request_name(record.id), _whole(encode_request(request)), ttl=self._left(record))
        # Without a Msg-Id: that of an earlier attempt, which wrote no record, may have left the queue already.
        queued = msgspec.msgpack.encode(QueuedVideo(id=record.id, owner=record.owner))
        await self._connection.js_publish(subjects.queued_video(record.id), queued)
        try:
            await self._bucket.create(self._key(record), msgspec.msgpack.encode(record), ttl=self._left(record))
        except RevisionConflict:
            return await self.find(record.owner, record.id)
        return record

    async def find(self, owner: str | None, video_id: str) -> VideoRecord:
        """A tenant's video; raises UnknownVideo."""
        return await self._records.find(owner, video_id)

    async def known(self, owner: str | None, video_id: str) -> VideoRecord | None:
        """A tenant's video, None when there is none."""
        try:
            return await self.find(owner, video_id)
        except UnknownVideo:
            return None

    async def page(self, owner: str | None, *, after: str | None, limit: int, oldest_first: bool) -> Page[VideoRecord]:
        """At most `limit` of a tenant's videos, behind the one with the id `after`."""
        return await self._records.page(owner, after=after, limit=limit, oldest_first=oldest_first)

    async def request(self, record: VideoRecord) -> Request:
        """The request that a video is made by; raises PayloadLost."""
        pieces = [piece async for piece in self._requests.read(_request_name(record.id))]
        return decode_request(b"".join(pieces))

    async def change(self, record: VideoRecord, decide: Callable[[VideoRecord], VideoRecord]) -> VideoRecord | None:
        """Replace a video by what `decide` makes of it as it is now; None when it was deleted, or has expired."""

        async def attempt() -> VideoRecord | None:
            try:
                entry = await self._records.entry(record.owner, record.id)
            except UnknownVideo:
                return None
            found = self._records.decode(entry.value)
            changed = decide(found)
            if changed != found:
                data = msgspec.msgpack.encode(changed)
                await self._bucket.update(entry.key, data, entry.revision, ttl=self._left(found))
            return changed

        return await transact(attempt, f"video {record.id}")

    async def keep_file(self, record: VideoRecord, data: bytes) -> None:
        """Store the file of a video, unless it is there."""
        await self._files.add_once(
            record.owner, record.file_id, _whole(data), filename=f"{record.id}.mp4", purpose=VIDEO_PURPOSE,
            lifetime=self._left(record),
        )  # fmt: skip

    async def file(self, record: VideoRecord) -> FileRecord:
        """The file of a completed video; raises UnknownFile."""
        return await self._files.find(record.owner, record.file_id)

    async def remove(self, record: VideoRecord) -> None:
        """Remove a video with its file; the record goes before it: what its runner stores after that, it removes itself.

        Its idempotency key comes first, and makes a new video from then on.
        """
        await self._free_key(record)
        await self._bucket.delete(self._key(record))
        await self.remove_file(record)
        await self._requests.delete(_request_name(record.id))

    async def remove_file(self, record: VideoRecord) -> None:
        """Remove the file of a video, if there is one."""
        with suppress(UnknownFile):
            await self._files.delete(record.owner, record.file_id)

    async def _free_key(self, record: VideoRecord) -> None:
        entry = await self._bucket.get_latest(_key_entry(record.key)) if record.key else None
        if entry is not None and entry.value.decode() == record.id:
            with suppress(RevisionConflict):  # another video has it by now
                await self._bucket.delete(entry.key, entry.revision)

    def _key(self, record: VideoRecord) -> str:
        return self._records.key(record.owner, record.id)

    def _left(self, record: VideoRecord) -> float:
        return max(record.expires - self.now(), 1.0)


def _key_entry(key: str) -> str:
    return f"=keys.{key}"  # no tenant's token has such a sign


def _request_name(video_id: str) -> str:
    return f"{video_id}.request"


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data
