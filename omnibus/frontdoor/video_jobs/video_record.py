"""The record of a video that is made as a job: what it was made of, and how far it is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from omnibus.errors import OmnibusError
from omnibus.files.file_record import PREFIX as FILE_PREFIX
from omnibus.wire.request import Message, Request, TextPart

PREFIX = "video_"
"""Beginning of every video's id, which is that of its request, too."""
VIDEO_PURPOSE = "video"
"""Purpose of the files that hold videos."""
_SHORTEST_POLL, _USUAL_POLL, _LONGEST_POLL = 250, 1000, 10_000
"""Milliseconds after which a client may ask again."""
_UNFINISHED = 99
"""Progress of what is made, but not stored yet."""


class UnknownVideo(OmnibusError, code="video_not_found", http_status=404):
    """No video of the caller has this id: it never had, it was deleted, or it has expired."""


class NoVideoYet(OmnibusError, code="video_not_ready", http_status=409):
    """The video has no content, or none yet."""


class VideoStatus(StrEnum):
    """Where a video is."""

    QUEUED = "queued"
    """Nothing of it was computed yet, as far as anybody saw."""
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


class VideoRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A video."""

    v: int = 1
    id: str
    owner: str | None
    """The tenant whose key made it; None where no keys are asked for."""
    pipeline: str
    model: str
    """The name that the caller has for the pipeline."""
    prompt: str
    created: float
    """Seconds since the epoch, by the server's clock, as all times."""
    expires: float
    key: str = ""
    """Token of the idempotency key that the caller gave."""
    fingerprint: str = ""
    """Digest of what was asked for, where there is such a key."""
    seconds: str | None = None
    """The length: asked for, and once it is made the file's."""
    size: str | None = None
    """WIDTHxHEIGHT, likewise."""
    remixed_from: str | None = None
    """The video that it is a remix of."""
    status: VideoStatus = VideoStatus.QUEUED
    progress: int = 0
    """Percent."""
    started: float | None = None
    """When the first sign of work on it was seen."""
    ended: float | None = None
    nbytes: int = 0
    """Bytes of its request, which is kept as long as it is."""
    code: str = ""
    """The code of the error that it failed of."""
    message: str = ""

    @property
    def file_id(self) -> str:
        """The id of its file, once it is completed."""
        return FILE_PREFIX + self.id.removeprefix(PREFIX)

    def working(self, progress: int, now: float) -> VideoRecord:
        """The record of a video that has come so far; never back, and not beyond its end."""
        if self.ended is not None:
            return self
        started = now if self.started is None else self.started
        return replace(self, status=VideoStatus.IN_PROGRESS, progress=max(self.progress, progress), started=started)

    def completed(self, seconds: str, size: str, now: float) -> VideoRecord:
        """The record of a video whose file is stored."""
        if self.ended is not None:
            return self
        return replace(self, status=VideoStatus.COMPLETED, progress=100, ended=now, seconds=seconds, size=size)

    def failed(self, code: str, message: str, now: float) -> VideoRecord:
        """The record of a video that nobody will make."""
        if self.ended is not None:
            return self
        return replace(self, status=VideoStatus.FAILED, ended=now, code=code, message=message)

    def poll_after(self, now: float) -> int | None:
        """Milliseconds after which a client may ask again, as the progress so far lets expect; None when it has ended."""
        if self.ended is not None:
            return None
        if self.started is None or not self.progress:
            return _USUAL_POLL
        left = (now - self.started) * (100 - self.progress) / self.progress
        return round(min(max(left * 1000, _SHORTEST_POLL), _LONGEST_POLL))


def unknown_video(video_id: str) -> UnknownVideo:
    """The error of an id that the caller has no video of."""
    return UnknownVideo(f"there is no video {video_id[:80]!r}", param="video_id")


def percent(stage_ids: Sequence[int], stage_id: int, step: int, total: int) -> int:
    """Progress of a request at a step of one of its stages, all of which count the same; in the order of its route."""
    done = stage_ids.index(stage_id) + min(step / max(total, 1), 1.0)
    return min(int(100 * done / len(stage_ids)), _UNFINISHED)


def with_prompt(request: Request, prompt: str) -> Request:
    """The same request of a single turn with another prompt, its pictures included."""
    (turn,) = request.messages or ()
    content: str | tuple[object, ...] = prompt
    if not isinstance(turn.content, str):
        content = (*(part for part in turn.content if not isinstance(part, TextPart)), TextPart(text=prompt))
    return replace(request, messages=(Message(role=turn.role, content=content),))  # type: ignore[arg-type]
