"""Over NATS: one message on the raw subject, and the Python client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import msgspec

from omnibus.broker.connection import Connection
from omnibus.client.producer import Producer
from omnibus.client.request_events import Ended, MediaPiece, Result, SegmentFinished, TextPiece
from omnibus.errors import OmnibusError
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire import subjects
from omnibus.wire.request import Request
from tests.chaos.clients.planned_request import PAUSE, Note, Wish
from tests.support.spoken_text import text_of, text_of_result


async def publish(connection: Connection, note: Note, pipeline: str) -> None:
    """Publish until the broker has it. What becomes of it stands in the ledger."""
    subject = subjects.request(pipeline, note.wish.op)
    data = note.wish.body if note.wish.body is not None else msgspec.json.encode(_request(note.wish))
    while note.patient:
        try:
            await connection.js_publish(subject, data)
        except OmnibusError as error:
            note.broken(error.message)
            await asyncio.sleep(PAUSE)
            continue
        note.accepted(note.wish.op)
        return
    note.left("the broker did not take it in time")


async def produce(
    producer: Producer, note: Note, spec: PipelineSpec, answered: Callable[[int], None] = lambda _number: None
) -> None:
    """Submit and follow with the Python client, which attaches when it has to begin again.

    `answered` is called with the number of each segment whose answer is whole.
    """
    while note.patient:
        begun = False
        try:
            async with asyncio.timeout(note.seconds_left):
                submission = await producer.submit(spec, _request(note.wish), rid=note.wish.op)
                note.accepted(submission.rid)
                begun = True
                async with aclosing(submission.events()) as events:
                    async for event in events:
                        if isinstance(event, TextPiece):
                            note.delta(event.text)
                        if isinstance(event, SegmentFinished):
                            answered(event.number)
                        if isinstance(event, MediaPiece) and note.wish.is_spoken:
                            note.delta(text_of(event.values["audio"]))
                        if isinstance(event, Ended):
                            _ended(note, event.result)
                            return
            note.broken("the events ended without an end", begun=True)
        except OmnibusError as error:
            if not error.retryable:
                note.ended("failed", code=error.code)
                return
            note.broken(error.message, begun=begun)
        except TimeoutError:
            break
        await asyncio.sleep(PAUSE)
    note.left("no end came in time")


def _ended(note: Note, result: Result) -> None:
    code = result.failure.code if result.failure is not None else ""
    note.ended(result.state.value, text=text_of_result(result), code=code)


def _request(wish: Wish) -> Request:
    return Request(
        prompt=wish.prompt, modalities=wish.modalities, sampling_params=wish.sampling, resumable=bool(wish.segments)
    )
