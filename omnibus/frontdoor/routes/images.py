"""`POST /v1/images/generations`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response
from sse_starlette.event import ServerSentEvent

from omnibus.client.request_events import Ended, Result, StepProgress
from omnibus.errors import InvalidRequest
from omnibus.frontdoor.answers import answered, transcoded_all
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.mapping.answering import head_of, image_usage, images
from omnibus.frontdoor.mapping.asking import image_request
from omnibus.frontdoor.mapping.media import to_base64
from omnibus.frontdoor.mapping.previews import Previews
from omnibus.frontdoor.schemas.images import ImageBody, ImageCompletedEvent, PartialImageEvent
from omnibus.frontdoor.streaming import Lookahead, data, event_stream, first_seen
from omnibus.frontdoor.submitting import result_of, submit

router = APIRouter()


@router.post("/v1/images/generations")
async def generate_images(body: ImageBody, http: Request, context: Context) -> Response:
    """Paint images from a prompt."""
    if body.stream and body.response_format == "url":
        raise InvalidRequest("a stream of images is b64_json", param="response_format")
    served = await context.models.find(body.model, modality="image")
    accepted = await submit(context, http, served, image_request(body, served.spec))
    image_format = body.output_format or "png"
    if not body.stream:
        result = await result_of(context, http, accepted)
        outputs = await transcoded_all(result.outputs, image=image_format)
        head, as_urls = head_of(result, served.model), body.response_format == "url"
        return answered(images(head, outputs, as_urls=as_urls, image_format=image_format), result, served.spec)
    previews = Previews(body.partial_images or 0)
    events = await first_seen(context, http, accepted)
    return event_stream(context, accepted, _pieces(events, previews, image_format))


async def _pieces(events: Lookahead, previews: Previews, image_format: str) -> AsyncIterator[ServerSentEvent]:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, StepProgress) and event.preview is not None:
                index = previews.take(event.step, event.total)
                if index is not None:
                    yield _partial(index, event.preview)
            elif isinstance(event, Ended):
                event.result.raise_for_state()
                for completed in await _completed(event.result, image_format):
                    yield data(completed, event=completed.type)


def _partial(index: int, preview: bytes) -> ServerSentEvent:
    event = PartialImageEvent(
        type="image_generation.partial_image",
        partial_image_index=index,
        b64_json=to_base64(preview),
        created_at=int(time.time()),
        output_format="png",
    )
    return data(event, event=event.type)


async def _completed(result: Result, image_format: str) -> list[ImageCompletedEvent]:
    return [
        ImageCompletedEvent(
            type="image_generation.completed",
            b64_json=to_base64(item),
            created_at=int(result.created),
            output_format=image_format,
            usage=image_usage(result.outputs),
        )
        for output in await transcoded_all(result.outputs, image=image_format)
        for item in output.items
    ]
