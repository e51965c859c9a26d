"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing

from fastapi import APIRouter, Request, Response
from sse_starlette.event import ServerSentEvent

from omnibus.client.request_events import Ended, OutputArrived, TextPiece
from omnibus.frontdoor.answers import answered, transcoded_all
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.mapping.answering import Head, chat_completion, head_of
from omnibus.frontdoor.mapping.asking import chat_request
from omnibus.frontdoor.mapping.streams import ChatStream, live_stage
from omnibus.frontdoor.schemas.chat import ChatBody
from omnibus.frontdoor.streaming import Lookahead, data, event_stream, first_seen
from omnibus.frontdoor.submitting import result_of, submit
from omnibus.frontdoor.transcoding import transcoded
from omnibus.pipeline.routing import plan_route

router = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatBody, http: Request, context: Context) -> Response:
    """Answer a chat with text, images and sound."""
    served = await context.models.find(body.model)
    request = chat_request(body, served.spec)
    accepted = await submit(context, http, served, request)
    audio = body.audio.format if body.audio is not None else "wav"
    if not body.stream:
        result = await result_of(context, http, accepted)
        outputs = await transcoded_all(result.outputs, audio=audio)
        return answered(chat_completion(head_of(result, served.model), outputs), result, served.spec)
    head = Head(rid=accepted.rid, model=served.model, created=int(time.time()))
    live = live_stage(plan_route(served.spec, request.modalities))
    include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    stream = ChatStream(head, live, include_usage=include_usage)
    events = await first_seen(context, http, accepted)
    return event_stream(context, accepted, _pieces(events, stream, audio))


async def _pieces(events: Lookahead, stream: ChatStream, audio: str) -> AsyncIterator[ServerSentEvent]:
    yield data(stream.opening())
    async with aclosing(events):
        async for event in events:
            match event:
                case TextPiece():
                    chunks = stream.text(event)
                case OutputArrived(output=output):
                    chunks = stream.output(await transcoded(output, audio=audio))
                case Ended(result=result):
                    result.raise_for_state()
                    chunks = stream.closing(result.outputs)
                case _:
                    chunks = []
            for chunk in chunks:
                yield data(chunk)
