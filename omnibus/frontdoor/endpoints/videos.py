"""`POST /v1/videos`: a video as a job; `/remix`: another one like it; `/sync`: a video as the answer itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, ClassVar

import msgspec
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import Field

from omnibus.errors import (
    EngineError,
    InvalidRequest,
    RequestTooLarge,
)
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import timing_headers
from omnibus.frontdoor.bodies import AskingBody, Body, Matching, Upload, check_modality, single_turn
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.data_urls import file_at
from omnibus.frontdoor.endpoints.images import MAX_SIDE, MAX_STEPS, Size, sides
from omnibus.frontdoor.endpoints.stored_videos import VideoObject, video_response
from omnibus.frontdoor.job_submission import submit_job
from omnibus.frontdoor.openapi_document import answers_with
from omnibus.frontdoor.outbound.web_files import NamedFile, is_web_address
from omnibus.frontdoor.retention import lifetime
from omnibus.frontdoor.submitting import Prepared, identified, prepare, result_of, submit
from omnibus.frontdoor.video_jobs.video_record import NoVideoYet, VideoRecord, VideoStatus, with_prompt
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import ImagePart, Message, Request, TextPart

MAX_SECONDS = 3600
router = APIRouter(route_class=BodyRoute)
_Seconds = Annotated[str, Matching(r"[0-9]{1,4}(\.[0-9]{1,3})?", "a number of seconds, such as 4 or 2.5")]
_Side = Annotated[int, Field(ge=8, le=MAX_SIDE)]


class Reference(Body):
    """A picture that the video begins with, or is made of: one of the two."""

    image_url: str | None = None
    """A data URL, or a web address where the operator allows its host."""
    file_id: str | None = None
    """The id of a stored file."""


class VideoBody(AskingBody):
    """A prompt to film. `seconds` or `num_frames` say how long, by the stage's own default where neither is given."""

    called: ClassVar[Mapping[str, str]] = {"messages": "prompt"}
    takes_forms: ClassVar[bool] = True
    prompt: str
    input_reference: Upload | Reference | None = None
    """A file of a form, or an object."""
    seconds: _Seconds | float | None = None
    size: Size | None = None
    width: _Side | None = None
    height: _Side | None = None
    num_frames: Annotated[int, Field(ge=1)] | None = None
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=1000)] | None = None
    negative_prompt: str | None = None

    def named_files(self) -> Iterable[NamedFile]:
        url = self.input_reference.image_url if isinstance(self.input_reference, Reference) else None
        return [NamedFile(url, "input_reference.image_url")] if url is not None and is_web_address(url) else []

    def field_of(self, param: str) -> str:
        if param == "image" or (param.startswith("messages[") and param.endswith(".image")):
            return "input_reference"
        if param == "file_id":
            return "input_reference.file_id"
        if self.size is not None and param in ("width", "height"):
            return "size"
        return super().field_of(param)


class RemixBody(Body):
    """The prompt of a video that is made as another one was."""

    prompt: str


@router.post(
    "/v1/videos/sync",
    response_class=Response,
    responses=answers_with("video/mp4"),
    openapi_extra=RouteAccess.USER.stated,
)
async def film_at_once(body: VideoBody, http: HttpRequest, context: Context) -> Response:
    """Film a prompt: the answer is the file itself, once it is made."""
    body = await _checked(body, http, context)
    accepted = await submit(context, http, body, video_request, modality="video")
    result = await result_of(context, http, accepted)
    film = result.output("video")
    if film is None or not film.items:
        raise EngineError("the pipeline delivered no video")
    return Response(film.items[0], headers=timing_headers(result, accepted.served.spec), media_type=film.media_type)


@router.post("/v1/videos", response_model=VideoObject, openapi_extra=RouteAccess.USER.stated)
async def create_video(body: VideoBody, http: HttpRequest, context: Context) -> Response:
    """Have a prompt filmed: the answer is the job, whose video is kept for seven days."""
    body = await _checked(body, http, context)
    prepared = await prepare(context, http, body, video_request, modality="video")
    size = f"{body.width}x{body.height}" if body.width and body.height else body.size
    seconds = None if body.seconds is None else str(body.seconds)
    return await _started(context, http, prepared, prompt=body.prompt, seconds=seconds, size=size)


@router.post("/v1/videos/{video_id}/remix", response_model=VideoObject, openapi_extra=RouteAccess.USER.stated)
async def remix_video(body: RemixBody, http: HttpRequest, context: Context) -> Response:
    """Have another prompt filmed as a completed video was: with its parameters and its picture."""
    source = await context.videos.find(http.state.tenant, http.path_params["video_id"])
    if source.status is not VideoStatus.COMPLETED:
        raise NoVideoYet(f"{source.id} is {source.status}: only a completed video can be remixed", param="video_id")
    single_turn(body.prompt, "prompt")
    request = with_prompt(await context.videos.request(source), body.prompt)
    prepared = await identified(http, request, await context.models.find(source.model))
    return await _started(
        context, http, prepared, prompt=body.prompt, seconds=source.seconds, size=source.size, remixed_from=source.id
    )


async def _started(
    context: FrontDoorContext, http: HttpRequest, prepared: Prepared, *,
    prompt: str, seconds: str | None, size: str | None, remixed_from: str | None = None,
) -> Response:  # fmt: skip
    """Store a new video and submit its request; the answer is the stored one where the idempotency key has one.

    Raises RequestConflict for a key that was used for another video. A request that is refused leaves no video, unless it was
    there before.
    """
    videos, state = context.videos, http.scope["state"]
    key = prepared.rid if prepared.keyed else ""
    request = msgspec.structs.replace(prepared.request, stream=True)  # for its steps

    async def begin() -> tuple[VideoRecord, bool]:
        now = videos.now()
        new = VideoRecord(
            id="", owner=state["tenant"], pipeline=prepared.served.spec.name, model=prepared.served.model,
            created=now, expires=now + lifetime(http.scope, context.options.keep_videos), key=key,
            fingerprint=request.fingerprint, prompt=prompt, seconds=seconds, size=size, remixed_from=remixed_from,
        )  # fmt: skip
        record, is_new = await videos.begin(new, request)
        state["request_id"] = record.id
        return record, is_new

    record = await submit_job(
        context, http, videos, begin, lambda known: replace(prepared, rid=known.id, request=request),
        fingerprint=request.fingerprint, what="video",
    )  # fmt: skip
    return await video_response(record, videos.now())


async def _checked(body: VideoBody, http: HttpRequest, context: FrontDoorContext) -> VideoBody:
    """The body with the bytes of the stored file that it refers to; raises InvalidRequest, UnknownFile."""
    if body.stream:
        raise InvalidRequest("a video comes whole", param="stream")
    if not isinstance(body.input_reference, Reference) or body.input_reference.file_id is None:
        return body
    if body.input_reference.image_url is not None:
        raise InvalidRequest("give image_url or file_id, not both", param="input_reference")
    record = await context.files.find(http.state.tenant, body.input_reference.file_id)
    if record.nbytes > (most := context.options.max_body_bytes):
        raise RequestTooLarge(f"a file of a request may have {most} bytes", param="file_id")
    data = await context.files.read_whole(record)
    return body.model_copy(update={"input_reference": data})


def video_request(body: VideoBody, spec: PipelineSpec) -> Request:
    """A prompt to film, as a chat of one turn. Raises RequestError naming the field."""
    check_modality(spec, "video")
    if body.seconds is not None and body.num_frames is not None:
        raise InvalidRequest("give seconds or num_frames, not both", param="seconds")
    if body.size is not None and (body.width is not None or body.height is not None):
        raise InvalidRequest("give size, or width and height", param="size")
    names = ("width", "height", "num_frames", "fps", "num_inference_steps", "guidance_scale", "negative_prompt")
    seconds = {} if body.seconds is None else {"seconds": float(body.seconds)}
    given = {name: getattr(body, name) for name in names} | sides(body.size) | seconds
    video = {name: value for name, value in given.items() if value is not None}
    return body.request(spec, ("video",), video=video, messages=_messages(body))


def _messages(body: VideoBody) -> tuple[Message, ...]:
    if body.input_reference is None:
        return single_turn(body.prompt, "prompt")
    if isinstance(body.input_reference, bytes):
        picture = ImagePart(data=body.input_reference)
    elif body.input_reference.image_url is None:
        raise InvalidRequest("give image_url or file_id", param="input_reference")
    else:
        url, field = body.input_reference.image_url, "input_reference.image_url"
        picture = ImagePart(data=file_at(url, "image", body.fetched, param=field)[0])
    return (Message(role="user", content=(picture, TextPart(text=body.prompt))),)
