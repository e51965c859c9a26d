"""`GET` and `DELETE` of `/v1/videos`: videos that were made as jobs, at whichever front door; each caller has its own."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from omnibus.errors import UnknownRequest
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import json_response, list_response
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.file_answers import file_response
from omnibus.frontdoor.openapi_document import files_of
from omnibus.frontdoor.video_jobs.video_record import NoVideoYet, VideoRecord, VideoStatus

POLL_AFTER = "openai-poll-after-ms"
"""Header that says when a client may ask again, which OpenAI's clients wait for."""
router = APIRouter()
_FILES = files_of("video/mp4", "image/webp")


class VideoQuery(BaseModel):
    """Which of the videos are listed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: str | None = None
    """The id of the video behind which the list begins."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"


class ContentQuery(BaseModel):
    """The part of a video that is wanted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: Literal["video", "thumbnail"] = "video"


class VideoError(TypedDict):
    code: str
    message: str


class VideoObject(TypedDict):
    """A video, made or in the making."""

    id: str
    object: Literal["video"]
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    """Percent, from the steps of the stages."""
    created_at: int
    """Seconds since the epoch, as the other times."""
    completed_at: int | None
    expires_at: int
    prompt: str
    seconds: str | None
    """The length; until the video is completed, as it was asked for."""
    size: str | None
    """WIDTHxHEIGHT, likewise."""
    remixed_from_video_id: str | None
    error: VideoError | None


class VideoList(TypedDict):
    object: Literal["list"]
    data: list[VideoObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(TypedDict):
    id: str
    object: Literal["video.deleted"]
    deleted: Literal[True]


@router.get("/v1/videos", response_model=VideoList, openapi_extra=RouteAccess.USER.stated)
async def list_videos(http: HttpRequest, context: Context, query: Annotated[VideoQuery, Query()]) -> Response:
    """The caller's videos, the newest first unless `order` says otherwise."""
    page = await context.videos.page(
        http.state.tenant, after=query.after, limit=query.limit, oldest_first=query.order == "asc"
    )
    return await list_response([_video(record) for record in page.records], has_more=page.has_more)


@router.get("/v1/videos/{video_id}", response_model=VideoObject, openapi_extra=RouteAccess.USER.stated)
async def get_video(video_id: str, http: HttpRequest, context: Context) -> Response:
    """Where a video is."""
    return await video_response(await context.videos.find(http.state.tenant, video_id), context.videos.now())


@router.delete("/v1/videos/{video_id}", response_model=DeletedVideo, openapi_extra=RouteAccess.USER.stated)
async def delete_video(video_id: str, http: HttpRequest, context: Context) -> Response:
    """Remove a video and its file at once; one that is still made is cancelled."""
    record = await context.videos.find(http.state.tenant, video_id)
    await context.videos.remove(record)
    if record.ended is None:
        with suppress(UnknownRequest):
            await context.producer.cancel(record.pipeline, record.id)
    return await json_response(lambda: DeletedVideo(id=record.id, object="video.deleted", deleted=True))


@router.get(
    "/v1/videos/{video_id}/content", response_class=Response, responses=_FILES, openapi_extra=RouteAccess.USER.stated
)
async def get_video_content(
    video_id: str, http: HttpRequest, context: Context, query: Annotated[ContentQuery, Query()]
) -> Response:
    """The file of a completed video, or the part that the header `Range` names; or its `thumbnail`, a WebP picture."""
    record = await context.videos.find(http.state.tenant, video_id)
    if record.status is not VideoStatus.COMPLETED:
        why = f"it has failed: {record.message}" if record.status is VideoStatus.FAILED else f"it is {record.status}"
        raise NoVideoYet(f"{record.id} has no content: {why}", param="video_id")
    file = await context.videos.file(record)
    if query.variant == "video":
        return await file_response(context.files, record.owner, file, http, "video/mp4")
    data = await context.files.read_whole(file)
    return Response(await asyncio.to_thread(_thumbnail, data), media_type="image/webp")


async def video_response(record: VideoRecord, now: float) -> Response:
    """A record as a body, with the time after which a client may ask again."""
    wait = record.poll_after(now)
    headers = {} if wait is None else {POLL_AFTER: str(wait)}
    return await json_response(lambda: _video(record), headers=headers)


def _video(record: VideoRecord) -> VideoObject:
    is_completed, is_failed = record.status is VideoStatus.COMPLETED, record.status is VideoStatus.FAILED
    return VideoObject(
        id=record.id, object="video", model=record.model, status=record.status.value, progress=record.progress,
        created_at=int(record.created), completed_at=int(record.ended or 0) if is_completed else None,
        expires_at=int(record.expires), prompt=record.prompt, seconds=record.seconds, size=record.size,
        remixed_from_video_id=record.remixed_from,
        error=VideoError(code=record.code, message=record.message) if is_failed else None,
    )  # fmt: skip


def _thumbnail(data: bytes) -> bytes:
    from omnibus.media import video  # noqa: PLC0415 only videos load its libraries

    return video.thumbnail(data)
