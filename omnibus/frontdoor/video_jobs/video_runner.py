"""The runner of videos: follows the request of each queued one, notes how far it is, and keeps the file in the end.

Every front door has one. The queue gives a video to another as soon as its runner is silent for a lease; two that follow the
same video do no harm, as each change of its record is a compare-and-set.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Self, cast

import msgspec

from omnibus.broker.delivery import Delivery
from omnibus.broker.delivery_loop import serve_always
from omnibus.broker.layout import VIDEO_LEASE
from omnibus.broker.puller import Puller
from omnibus.client.producer import Submission
from omnibus.client.request_events import ClientEvent, Ended, Result, StepProgress
from omnibus.errors import BrokerError, OmnibusError, UnknownRequest, Unreadable
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.frontdoor.error_answers import ServerFault
from omnibus.frontdoor.video_jobs.video_record import VideoRecord, VideoStatus, percent
from omnibus.frontdoor.video_jobs.video_store import UNRECORDED, QueuedVideo
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.requests.state import RequestState
from omnibus.webhooks.webhook_event import EventType
from omnibus.wire import subjects

MOST_FOLLOWED = 256
"""Videos that one front door follows at the same time; others wait in the queue, and are made all the same."""
NOTED_EVERY = 1.0
"""Seconds between two notes of a video's progress, at least."""
_ADMISSION = 5.0
"""Seconds after a video's creation in which its creator may still be submitting it."""
_AGAIN = 1.0
"""Seconds after which a video is looked at again that cannot be followed yet."""
_SOON = 0.2
"""The same for a video without a record, at first; the delay doubles."""
_LEAVE = 0.3
"""Seconds after which a video that is left comes to others: this one's puller is gone by then, and does not get it again."""
_log = get_logger(__name__)


class VideoRunner:
    """Sees videos to their end, in an `async with`; what it then has in hand goes to others."""

    def __init__(self, context: FrontDoorContext) -> None:
        self._producer, self._models, self._store = context.producer, context.models, context.videos
        self._webhooks = context.webhooks
        self._following: set[asyncio.Task[object]] = set()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        connection = self._producer.connection
        puller = partial(
            Puller, connection, subjects.VIDEOS_STREAM, [subjects.VIDEOS_CONSUMER], lease=VIDEO_LEASE, label="videos"
        )  # fmt: skip
        serving = serve_always(connection, puller, self, concurrency=MOST_FOLLOWED, where="videos")
        self._task = asyncio.create_task(serving, name="videos")
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._following:  # the loop would wait for them
            task.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def handle(self, delivery: Delivery) -> bool:
        """See one video to its end; False when it was put back, to be looked at again. Raises Unreadable for no video."""
        record = await self._record(delivery)
        if record is None:  # it was deleted, or is on its way
            age = self._store.now() - delivery.stored_at
            if age < UNRECORDED:
                await delivery.nak(max(_SOON, age))
            return age >= UNRECORDED
        if record.ended is not None:
            await self._announce(record)
            return True
        async with self._held(delivery):
            submission = await self._submission(record)
            if submission is not None:
                await self._follow(record, submission)
                await self._announce(await self._record(delivery))
                return True
        await delivery.nak(_AGAIN)
        return False

    async def give_up(self, delivery: Delivery, error: Exception, *, dead: bool) -> None:  # noqa: ARG002 it fails either way
        """End a video that cannot be made; of one that cannot be read, only the log tells."""
        _log.error(LogEvent.VIDEO_GIVEN_UP, subject=delivery.subject, error=str(error))
        with suppress(Unreadable):
            record = await self._record(delivery)
            if record is not None:
                await self._fail(record, error if isinstance(error, OmnibusError) else ServerFault())
                await self._announce(await self._record(delivery))

    async def _announce(self, record: VideoRecord | None) -> None:
        """Queue the webhooks of a video that has ended; idempotent."""
        if record is not None and record.ended is not None:
            kind: EventType = "video.completed" if record.status is VideoStatus.COMPLETED else "video.failed"
            await self._webhooks.notify(record.owner, kind, record.id)

    async def _record(self, delivery: Delivery) -> VideoRecord | None:
        try:
            queued = msgspec.msgpack.decode(delivery.data, type=QueuedVideo)
            return await self._store.known(queued.owner, queued.id)
        except msgspec.DecodeError as error:
            raise Unreadable(f"the video on {delivery.subject!r} cannot be read: {error}") from error

    async def _submission(self, record: VideoRecord) -> Submission | None:
        """The request of a video, submitted again where nothing knows it any more; None while that cannot be known or done."""
        try:
            return await self._producer.attach(record.pipeline, record.id)
        except UnknownRequest:
            if self._store.now() < record.created + _ADMISSION:
                return None
        served = await self._models.find(record.pipeline)
        try:
            return await self._producer.submit(served.spec, await self._store.request(record), rid=record.id)
        except OmnibusError as error:
            if error.retryable and not isinstance(error, BrokerError):  # there is no room for it now
                return None
            raise

    async def _follow(self, record: VideoRecord, submission: Submission) -> None:
        stage_ids, noted = submission.ticket.route.stage_ids, 0.0
        async with aclosing(submission.batches()) as batches:
            async for events in batches:
                ended = next((event for event in events if isinstance(event, Ended)), None)
                if ended is not None:
                    await self._end(record, ended.result)
                    return
                now = self._store.now()
                if events and now >= noted + NOTED_EVERY:
                    noted, progress = now, _progress(stage_ids, events)
                    working = partial(VideoRecord.working, progress=progress, now=now)
                    if await self._store.change(record, working) is None:
                        return  # it was deleted

    async def _end(self, record: VideoRecord, result: Result) -> None:
        if result.failure is not None:
            await self._fail(record, result.failure.exception())
            return
        film = result.output("video")
        if result.state is not RequestState.DONE or film is None or not film.items:
            await self._store.change(
                record, lambda one: one.failed("engine_error", "the pipeline delivered no video", self._store.now())
            )
            return
        seconds, size = await asyncio.to_thread(_measured, film.items[0])
        await self._store.keep_file(record, film.items[0])
        if await self._store.change(record, lambda one: one.completed(seconds, size, self._store.now())) is None:
            await self._store.remove_file(record)

    async def _fail(self, record: VideoRecord, error: OmnibusError) -> None:
        await self._store.change(record, lambda one: one.failed(error.code, error.message, self._store.now()))

    @asynccontextmanager
    async def _held(self, delivery: Delivery) -> AsyncIterator[None]:
        """Keep a delivery from being given to others; they get it at once where this runner is stopped meanwhile."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(VIDEO_LEASE / 3)
                delivery.renew()

        task = cast("asyncio.Task[object]", asyncio.current_task())
        self._following.add(task)
        renewing = asyncio.create_task(renew(), name=f"renew {delivery.subject}")
        try:
            yield
        except asyncio.CancelledError:
            await delivery.nak(_LEAVE)
            raise
        finally:
            renewing.cancel()
            self._following.discard(task)


def _progress(stage_ids: Sequence[int], events: Sequence[ClientEvent]) -> int:
    steps = [event for event in events if isinstance(event, StepProgress)]
    return max((percent(stage_ids, one.stage_id, one.step, one.total) for one in steps), default=0)


def _measured(data: bytes) -> tuple[str, str]:
    """Length and size of a file, as texts."""
    from omnibus.media import video  # noqa: PLC0415 only videos load its libraries

    seconds, width, height = video.dimensions(data)
    return f"{seconds:g}", f"{width}x{height}"
