"""`POST /v1/completions`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response
from sse_starlette.event import ServerSentEvent

from omnibus.client.request_events import Ended, TextPiece
from omnibus.frontdoor.answers import answered
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.mapping.answering import Head, completion, head_of
from omnibus.frontdoor.mapping.asking import completion_request
from omnibus.frontdoor.mapping.streams import CompletionStream, live_stage
from omnibus.frontdoor.schemas.completions import CompletionBody
from omnibus.frontdoor.streaming import Lookahead, data, event_stream, first_seen
from omnibus.frontdoor.submitting import result_of, submit
from omnibus.pipeline.routing import plan_route

router = APIRouter()


@router.post("/v1/completions")
async def create_completion(body: CompletionBody, http: Request, context: Context) -> Response:
    """Continue a prompt."""
    served = await context.models.find(body.model)
    request = completion_request(body, served.spec)
    accepted = await submit(context, http, served, request)
    if not body.stream:
        result = await result_of(context, http, accepted)
        return answered(completion(head_of(result, served.model), result.outputs), result, served.spec)
    head = Head(rid=accepted.rid, model=served.model, created=int(time.time()))
    live = live_stage(plan_route(served.spec, request.modalities))
    include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    stream = CompletionStream(head, live, include_usage=include_usage)
    events = await first_seen(context, http, accepted)
    return event_stream(context, accepted, _pieces(events, stream))


async def _pieces(events: Lookahead, stream: CompletionStream) -> AsyncIterator[ServerSentEvent]:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TextPiece):
                for chunk in stream.text(event):
                    yield data(chunk)
            elif isinstance(event, Ended):
                event.result.raise_for_state()
                for chunk in stream.closing(event.result.outputs):
                    yield data(chunk)
