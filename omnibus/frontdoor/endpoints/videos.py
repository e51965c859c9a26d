"""`POST /v1/videos/sync`: a video as the answer itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import Field

from omnibus.errors import EngineError, InvalidRequest
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import timing_headers
from omnibus.frontdoor.bodies import AskingBody, Body, Upload, check_modality, single_turn
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.data_urls import from_data_url
from omnibus.frontdoor.endpoints.images import MAX_SIDE, MAX_STEPS, Size, sides
from omnibus.frontdoor.submitting import result_of, submit
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import ImagePart, Message, Request, TextPart

MAX_SECONDS = 3600
router = APIRouter(route_class=BodyRoute)
_Side = Annotated[int, Field(ge=8, le=MAX_SIDE)]


class Reference(Body):
    """A picture that the video begins with, or is made of."""

    image_url: str
    """A data URL."""


class VideoBody(AskingBody):
    """A prompt to film. `seconds` or `num_frames` say how long, by the stage's own default where neither is given."""

    called: ClassVar[Mapping[str, str]] = {"messages": "prompt"}
    takes_forms: ClassVar[bool] = True
    prompt: str
    input_reference: Upload | Reference | None = None
    """A file of a form, or an object."""
    seconds: Annotated[str, Field(pattern=r"^[0-9]{1,4}(\.[0-9]{1,3})?$")] | float | None = None
    size: Size | None = None
    width: _Side | None = None
    height: _Side | None = None
    num_frames: Annotated[int, Field(ge=1)] | None = None
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=1000)] | None = None
    negative_prompt: str | None = None

    def field_of(self, param: str) -> str:
        if param == "image" or (param.startswith("messages[") and param.endswith(".image")):
            return "input_reference"
        if self.size is not None and param in ("width", "height"):
            return "size"
        return super().field_of(param)


@router.post("/v1/videos/sync", openapi_extra=RouteAccess.USER.stated)
async def create_video(body: VideoBody, http: HttpRequest, context: Context) -> Response:
    """Film a prompt: the answer is the file itself, once it is made."""
    if body.stream:
        raise InvalidRequest("a video comes whole", param="stream")
    accepted = await submit(context, http, body, video_request, modality="video")
    result = await result_of(context, http, accepted)
    film = result.output("video")
    if film is None or not film.items:
        raise EngineError("the pipeline delivered no video")
    return Response(film.items[0], headers=timing_headers(result, accepted.served.spec), media_type=film.media_type)


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
    else:
        data, media_type = from_data_url(body.input_reference.image_url, "image", param="input_reference.image_url")
        picture = ImagePart(data=data, media_type=media_type)
    return (Message(role="user", content=(picture, TextPart(text=body.prompt))),)
