"""The events of any request as server-sent events, each with the cursor behind it as its id, at whichever front door."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import StreamingResponse

from omnibus.client.producer import Submission
from omnibus.client.request_events import (
    ClientEvent,
    Ended,
    FieldPiece,
    OutputArrived,
    Result,
    SegmentFinished,
    StepProgress,
    TextPiece,
)
from omnibus.client.stream_cursor import StreamCursor
from omnibus.errors import OmnibusError
from omnibus.frontdoor.answers import size_of
from omnibus.frontdoor.bodies import Answer
from omnibus.frontdoor.body_route import off_loop
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.frontdoor.data_urls import to_base64
from omnibus.frontdoor.endpoints.request_shapes import request_answer, request_output
from omnibus.frontdoor.served import Served
from omnibus.frontdoor.streaming import DONE, PING, STREAM_HEADERS, error_frame, frame


def event_stream(
    context: FrontDoorContext, served: Served, submission: Submission, cursor: StreamCursor
) -> StreamingResponse:
    """The events of a request behind a cursor, until it has ended. It goes on when the caller leaves."""
    frames = _frames(context, served, submission, cursor)
    return StreamingResponse(frames, headers=STREAM_HEADERS, media_type="text/event-stream")


async def _frames(
    context: FrontDoorContext, served: Served, submission: Submission, cursor: StreamCursor
) -> AsyncGenerator[bytes]:
    if not cursor.has_begun:
        yield _frame("request.status", {"status": submission.state.value}, cursor)
    try:
        if not (submission.ended and cursor.has_end(submission.ticket.run)):
            async with aclosing(_event_frames(context, served, submission, cursor)) as frames:
                async for one in frames:
                    yield one
    except OmnibusError as error:
        yield error_frame(error)
    yield DONE


async def _event_frames(
    context: FrontDoorContext, served: Served, submission: Submission, cursor: StreamCursor
) -> AsyncGenerator[bytes]:
    """The events that have come together, or a ping; raises as `Submission.events`."""
    sent_at = time.monotonic()
    async with aclosing(submission.batches()) as batches:
        async for events in batches:
            frames = list[bytes]()
            for event in events:
                for new in cursor.behind(event):
                    frames.append(await _encoded(context, served, new, cursor))
            if not frames and time.monotonic() - sent_at >= context.options.ping_interval:
                frames = [PING]
            if frames:
                yield b"".join(frames)
                sent_at = time.monotonic()


async def _encoded(context: FrontDoorContext, served: Served, event: ClientEvent, cursor: StreamCursor) -> bytes:
    if isinstance(event, OutputArrived):
        return await off_loop(size_of([event.output]), lambda: _frame(*_named(event, served), cursor))
    if not isinstance(event, Ended):
        return _frame(*_named(event, served), cursor)
    # The notice that a request is done does not name the attempts that failed on its way.
    result = await context.producer.result(served.spec.name, event.result.rid)
    return await off_loop(size_of(result.outputs), lambda: _frame("request.ended", _ended(result, served), cursor))


def _named(event: ClientEvent, served: Served) -> tuple[str, Answer]:
    """The type of an event, and the rest of its body."""
    name = served.spec.stage_name
    match event:
        case TextPiece(stage_id, text):
            return "request.text.delta", {"stage": name(stage_id), "delta": text}
        case FieldPiece(stage_id, field, text):
            return "request.field.delta", {"stage": name(stage_id), "field": field, "delta": text}
        case SegmentFinished(stage_id, number):
            return "request.segment.done", {"stage": name(stage_id), "number": number}
        case StepProgress(stage_id, step, total, preview):
            image = to_base64(preview) if preview is not None else None
            where = {"stage": name(stage_id), "step": step, "total": total}
            return "request.progress", {**where, "preview": image}
        case OutputArrived(output=output):
            return "request.output", {"output": request_output(output, served.spec)}
    raise AssertionError(event)


def _ended(result: Result, served: Served) -> Answer:
    return {"request": request_answer(result, served.spec, served.model)}


def _frame(kind: str, body: Answer, cursor: StreamCursor) -> bytes:
    place = str(cursor)
    return frame({"type": kind, **body, "cursor": place}, event=kind, event_id=place)
