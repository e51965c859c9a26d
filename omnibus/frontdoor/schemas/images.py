"""`/v1/images/generations`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from omnibus.frontdoor.schemas.common import Answer, AskingBody, Unsupported

ImageFormat = Literal["png", "jpeg", "webp"]
MAX_IMAGES = 16
"""Images of one request."""
MAX_SIDE = 4096
"""Pixels of a side; a pipeline may allow less (`max_pixels`)."""
MAX_STEPS = 1000


def _checked_size(size: str) -> str:
    if size != "auto" and any(int(side) > MAX_SIDE for side in size.split("x")):
        raise PydanticCustomError("too_large", "a side has at most {side} pixels", {"side": MAX_SIDE})
    return size


class ImageBody(AskingBody):
    """A prompt to paint."""

    prompt: str
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: (
        Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"), AfterValidator(_checked_size)] | None
    ) = None
    """WIDTHxHEIGHT in pixels."""
    response_format: Literal["b64_json", "url"] | None = None
    """`url` answers with data URLs: nothing is kept on a web server."""
    output_format: ImageFormat | None = None
    partial_images: Annotated[int, Field(ge=0, le=MAX_IMAGES)] | None = None
    """In a stream: previews wanted before the image, at most."""
    num_inference_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=1000)] | None = None
    negative_prompt: str | None = None
    svg: Unsupported = None


class ImageData(Answer):
    b64_json: str | None = None
    url: str | None = None


class ImageUsage(Answer):
    input_tokens: int
    output_tokens: int
    total_tokens: int


class ImagesAnswer(Answer):
    created: int
    output_format: str
    data: list[ImageData]
    usage: ImageUsage


class PartialImageEvent(Answer):
    """A preview on the way to the image."""

    type: Literal["image_generation.partial_image"]
    partial_image_index: int
    b64_json: str
    created_at: int
    output_format: str


class ImageCompletedEvent(Answer):
    """One finished image."""

    type: Literal["image_generation.completed"]
    b64_json: str
    created_at: int
    output_format: str
    usage: ImageUsage
