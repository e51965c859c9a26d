"""`POST /v1/images/edits` and `/v1/images/variations`: images made of images, which come as files of a form."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import Field

from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.bodies import Upload
from omnibus.frontdoor.body_route import BodyRoute
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.endpoints.images import MAX_IMAGES, ImageBody, ImagesAnswer, answer_with_images, image_request
from omnibus.frontdoor.openapi_document import EVENTS, answers_with
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import ImagePart, Message, Part, Request, TextPart

router = APIRouter(route_class=BodyRoute)
_PLACE = re.compile(r"messages\[0\]\.content\[(\d+)\]\.image")


class EditBody(ImageBody):
    """Images to edit by a prompt. A mask is transparent, or white, where the first one is to be painted anew."""

    takes_forms: ClassVar[bool] = True
    image: Upload | Annotated[list[Upload], Field(min_length=1, max_length=MAX_IMAGES)]
    mask: Upload | None = None
    strength: Annotated[float, Field(ge=0, le=1)] | None = None
    """How far the image may change, where the model takes that."""

    @property
    def images(self) -> list[bytes]:
        return self.image if isinstance(self.image, list) else [self.image]

    def field_of(self, param: str) -> str:
        found = _PLACE.fullmatch(param)
        if found is None:
            return "mask" if param == "mask_image" else super().field_of(param)
        if int(found[1]) >= len(self.images):
            return "mask"
        return f"image[{found[1]}]" if isinstance(self.image, list) else "image"


class VariationBody(EditBody):
    """An image to vary; a prompt may say how."""

    prompt: str = ""


@router.post(
    "/v1/images/edits",
    response_model=ImagesAnswer,
    responses=answers_with(EVENTS),
    openapi_extra=RouteAccess.USER.stated,
)
async def edit_images(body: EditBody, http: HttpRequest, context: Context) -> Response:
    """Edit images."""
    return await answer_with_images(context, http, body, edit_request, "image_edit")


@router.post(
    "/v1/images/variations",
    response_model=ImagesAnswer,
    responses=answers_with(EVENTS),
    openapi_extra=RouteAccess.USER.stated,
)
async def vary_image(body: VariationBody, http: HttpRequest, context: Context) -> Response:
    """Vary an image."""
    return await answer_with_images(context, http, body, edit_request, "image_edit")


def edit_request(body: EditBody, spec: PipelineSpec) -> Request:
    """The files and the prompt as a chat of one turn; raises RequestError naming the field."""
    masks = [] if body.mask is None else [ImagePart(data=body.mask, argument="mask")]
    text = [TextPart(text=body.prompt)] if body.prompt.strip() else []
    parts: tuple[Part, ...] = (*(ImagePart(data=data) for data in body.images), *masks, *text)
    return image_request(body, spec, (Message(role="user", content=parts),), strength=body.strength)
