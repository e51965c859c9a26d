"""The runner of videos: notes how far the request of each has come, and keeps the file in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial

from omnibus.broker.layout import VIDEO_LEASE
from omnibus.client.producer import Submission
from omnibus.client.request_events import ClientEvent, Ended, Result, StepProgress
from omnibus.errors import OmnibusError
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.frontdoor.job_runner import JobQueue, JobRunner
from omnibus.frontdoor.video_jobs.video_record import VideoRecord, VideoStatus, percent
from omnibus.observability.events import LogEvent
from omnibus.requests.state import RequestState
from omnibus.webhooks.webhook_event import EventType
from omnibus.wire import stores

NOTED_EVERY = 1.0
"""Seconds between two notes of a video's progress, at least."""
_QUEUE = JobQueue(stores.VIDEOS_STREAM, stores.VIDEOS_CONSUMER, VIDEO_LEASE, "videos")


class VideoRunner(JobRunner[VideoRecord]):
    """Sees videos to their end, in an `async with`; what it then has in hand goes to others."""

    given_up = LogEvent.VIDEO_GIVEN_UP

    def __init__(self, context: FrontDoorContext) -> None:
        self._videos = context.videos
        super().__init__(context, self._videos, _QUEUE)

    def end_of(self, record: VideoRecord) -> EventType:
        return "video.completed" if record.status is VideoStatus.COMPLETED else "video.failed"

    async def follow(self, record: VideoRecord, submission: Submission) -> None:
        stage_ids, noted = submission.ticket.route.stage_ids, 0.0
        async with aclosing(submission.batches()) as batches:
            async for events in batches:
                ended = next((event for event in events if isinstance(event, Ended)), None)
                if ended is not None:
                    await self._end(record, ended.result)
                    return
                now = self._videos.now()
                if events and now >= noted + NOTED_EVERY:
                    noted, progress = now, _progress(stage_ids, events)
                    working = partial(VideoRecord.working, progress=progress, now=now)
                    if await self._videos.change(record, working) is None:
                        return  # it was deleted

    async def _end(self, record: VideoRecord, result: Result) -> None:
        if result.failure is not None:
            await self.fail(record, result.failure.exception())
            return
        film = result.output("video")
        if result.state is not RequestState.DONE or film is None or not film.items:
            await self._videos.change(
                record, lambda one: one.failed("engine_error", "the pipeline delivered no video", self._videos.now())
            )
            return
        seconds, size = await asyncio.to_thread(_measured, film.items[0])
        await self._videos.keep_file(record, film.items[0])
        if await self._videos.change(record, lambda one: one.completed(seconds, size, self._videos.now())) is None:
            await self._videos.remove_file(record)

    async def fail(self, record: VideoRecord, error: OmnibusError) -> None:
        await self._videos.change(record, lambda one: one.failed(error.code, error.message, self._videos.now()))


def _progress(stage_ids: Sequence[int], events: Sequence[ClientEvent]) -> int:
    steps = [event for event in events if isinstance(event, StepProgress)]
    return max((percent(stage_ids, one.stage_id, one.step, one.total) for one in steps), default=0)


def _measured(data: bytes) -> tuple[str, str]:
    """Length and size of a file, as texts."""
    from omnibus.media import video  # noqa: PLC0415 only videos load its libraries

    seconds, width, height = video.dimensions(data)
    return f"{seconds:g}", f"{width}x{height}"
