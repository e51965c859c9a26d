"""`POST /v1/images/generations`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal, NotRequired, TypeVar

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from omnibus.client.request_events import ClientEvent, Ended, Output, StepProgress
from omnibus.errors import InvalidRequest
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import MediaUsage, json_response, media_usage, timing_headers, transcoded, whole_answer
from omnibus.frontdoor.bodies import AskingBody, Matching, check_modality, single_turn
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.context import Context, FrontDoorContext
from omnibus.frontdoor.data_urls import to_base64
from omnibus.frontdoor.image_links import check_links, image_links
from omnibus.frontdoor.openapi_document import EVENTS, answers_with
from omnibus.frontdoor.streaming import EventStream, Frames, frame
from omnibus.frontdoor.submitting import Accepted, Head, result_of, submit
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.envelope import StageTiming
from omnibus.wire.request import Message, Request

ImageFormat = Literal["png", "jpeg", "webp"]
MAX_IMAGES = 16
"""Images of one request."""
MAX_SIDE = 4096
"""Pixels of a side; a pipeline may allow less (`max_pixels`)."""
MAX_STEPS = 1000
router = APIRouter(route_class=BodyRoute)


def _checked_size(size: str) -> str:
    if size != "auto" and any(int(side) > MAX_SIDE for side in size.split("x")):
        raise PydanticCustomError("too_large", "a side has at most {side} pixels", {"side": MAX_SIDE})
    return size


Size = Annotated[
    str,
    Matching(r"auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", "WIDTHxHEIGHT in pixels, such as 1024x768, or auto"),
    AfterValidator(_checked_size),
]
"""WIDTHxHEIGHT in pixels."""


class ImageBody(AskingBody):
    """A prompt to paint."""

    called: ClassVar[Mapping[str, str]] = {
        "messages": "prompt", "width": "size", "height": "size", "previews": "partial_images",
    }  # fmt: skip
    prompt: str
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: Size | None = None
    response_format: Literal["b64_json", "url"] | None = None
    """`url`: links to files of the caller, which expire."""
    output_format: ImageFormat | None = None
    partial_images: Annotated[int, Field(ge=0, le=MAX_IMAGES)] | None = None
    """In a stream: previews wanted before the image, at most."""
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=1000)] | None = None
    negative_prompt: str | None = None


class ImageData(TypedDict):
    b64_json: NotRequired[str | None]
    url: NotRequired[str | None]


class ImagesAnswer(TypedDict):
    created: int
    output_format: str
    size: NotRequired[str]
    """WIDTHxHEIGHT of the first image."""
    background: NotRequired[Literal["opaque", "transparent"]]
    """Likewise."""
    data: list[ImageData]
    usage: MediaUsage


class PictureEvent(TypedDict):
    """The fields of both events of a stream."""

    b64_json: str
    created_at: int
    output_format: str
    size: str
    """WIDTHxHEIGHT of this picture."""
    background: str
    quality: str


class PartialImageEvent(PictureEvent):
    """A preview on the way to the image: `image_generation.partial_image` or `image_edit.partial_image`."""

    type: str
    partial_image_index: int


class ImageCompletedEvent(PictureEvent):
    """One finished image: `image_generation.completed` or `image_edit.completed`."""

    type: str
    usage: MediaUsage


@router.post(
    "/v1/images/generations",
    response_model=ImagesAnswer,
    responses=answers_with(EVENTS),
    openapi_extra=RouteAccess.USER.stated,
)
async def generate_images(body: ImageBody, http: HttpRequest, context: Context) -> Response:
    """Paint images from a prompt."""
    return await answer_with_images(context, http, body, image_request)


B = TypeVar("B", bound=ImageBody)


async def answer_with_images(
    context: FrontDoorContext,
    http: HttpRequest,
    body: B,
    request_of: Callable[[B, PipelineSpec], Request],
    event: str = "image_generation",
) -> Response:
    """Submit what a body asks for, and answer with the images, or a stream of events of this name."""
    if body.stream and body.response_format == "url":
        raise InvalidRequest("a stream of images is b64_json", param="response_format")
    if body.partial_images and not body.stream:
        raise InvalidRequest("partial images come in a stream only", param="partial_images")
    image_format, is_linked = body.output_format or "png", body.response_format == "url"
    if is_linked:
        await check_links(context, http)
    accepted = await submit(context, http, body, request_of, modality="image")
    if is_linked:
        return await _linked(context, http, accepted, image_format)
    if not body.stream:
        answer = partial(images, accepted.head, image_format=image_format)
        return await whole_answer(context, http, accepted, answer, image=image_format)
    encode = partial(_append_frames, event, Previews(body.partial_images or 0), image_format)
    return EventStream(context, http, accepted, encode)


async def _linked(context: FrontDoorContext, http: HttpRequest, accepted: Accepted, image_format: str) -> Response:
    result = await result_of(context, http, accepted)
    outputs = [await transcoded(output, image=image_format) for output in result.outputs]
    links = await image_links(context, http, accepted.head, outputs)
    answer = partial(images, accepted.head, outputs, result.timings, image_format=image_format, links=links)
    return await json_response(answer, headers=timing_headers(result, accepted.served.spec))


def image_request(
    body: ImageBody, spec: PipelineSpec, messages: tuple[Message, ...] | None = None, **more: float | None
) -> Request:
    """A prompt to paint, as a chat of one turn unless `messages` are given. Raises RequestError naming the field."""
    check_modality(spec, "image")
    given = {
        "n": body.n,
        "num_inference_steps": body.num_inference_steps,
        "guidance_scale": body.guidance_scale,
        "negative_prompt": body.negative_prompt,
        "previews": steps_between_previews(
            body.partial_images if body.stream else None, body.num_inference_steps, spec
        ),
        **sides(body.size),
        **more,
    }
    image = {name: value for name, value in given.items() if value is not None}
    return body.request(spec, ("image",), image=image, messages=messages or single_turn(body.prompt, "prompt"))


def images(
    head: Head,
    outputs: Sequence[Output],
    timings: Sequence[StageTiming] = (),
    *,
    image_format: str,
    links: Sequence[str] | None = None,
) -> ImagesAnswer:
    """Every image of every output, or the `links` to them."""
    items = [item for output in outputs for item in output.items]
    data = (
        [ImageData(b64_json=to_base64(item)) for item in items]
        if links is None
        else [ImageData(url=url) for url in links]
    )
    answer = ImagesAnswer(
        created=head.created, output_format=image_format, data=data, usage=media_usage(outputs, timings)
    )
    if items:
        from omnibus.media import pictures  # noqa: PLC0415 as in _picture

        first = pictures.opened(items[0])
        answer["size"] = f"{first.width}x{first.height}"
        answer["background"] = "transparent" if first.has_transparency_data else "opaque"
    return answer


class Previews:
    """Counts previews out: as many as were asked for, spread evenly over the steps."""

    def __init__(self, wanted: int, sent: int = 0) -> None:
        self._wanted, self._sent = wanted, sent

    def take(self, step: int, total: int) -> int | None:
        """The index of the preview at this step when it is due, else None. Steps count from 1."""
        due = (self._sent + 1) * total / (self._wanted + 1)
        if self._sent >= self._wanted or step < due:
            return None
        self._sent += 1
        return self._sent - 1


async def _append_frames(name: str, previews: Previews, image_format: str, event: ClientEvent, frames: Frames) -> None:
    made: PartialImageEvent | ImageCompletedEvent
    if isinstance(event, StepProgress) and event.preview is not None:
        index = previews.take(event.step, event.total)
        if index is not None:
            fields = await asyncio.to_thread(_picture, event.preview, image_format, int(time.time()))
            made = PartialImageEvent(type=f"{name}.partial_image", partial_image_index=index, **fields)
            frames.append(frame(made, event=made["type"]))
    elif isinstance(event, Ended):
        event.result.raise_for_state()
        total = media_usage(event.result.outputs, event.result.timings)
        for output in event.result.outputs:
            for item in (await transcoded(output, image=image_format)).items:
                fields = await asyncio.to_thread(_picture, item, image_format, int(event.result.created))
                made = ImageCompletedEvent(type=f"{name}.completed", usage=total, **fields)
                frames.append(frame(made, event=made["type"]))


def _picture(data: bytes, image_format: str, created: int) -> PictureEvent:
    from omnibus.media import pictures  # noqa: PLC0415 only pictures load their library

    picture = pictures.opened(data)
    return PictureEvent(
        b64_json=to_base64(pictures.converted(data, image_format)), created_at=created, output_format=image_format,
        size=f"{picture.width}x{picture.height}", background="auto", quality="auto",
    )  # fmt: skip


def sides(size: str | None) -> dict[str, int]:
    """The parameters of a size; none for `auto`, the stage's own."""
    if size is None or size == "auto":
        return {}
    width, height = size.split("x")
    return {"width": int(width), "height": int(height)}


def steps_between_previews(wanted: int | None, steps: int | None, spec: PipelineSpec) -> int | None:
    """As few previews as give the caller so many partial images in so many steps; None when it wants none."""
    if not wanted:
        return None
    defaults = (stage.default_sampling_params.get("num_inference_steps") for stage in spec.stages)
    steps = steps or next((known for known in defaults if isinstance(known, int)), 1)
    return max(1, steps // (wanted + 1))
