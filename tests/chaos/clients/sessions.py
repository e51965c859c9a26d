"""Sessions: segments are sent while they are answered, each again under its number until it is known to be stored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import httpx

from omnibus.client.producer import Producer
from omnibus.errors import InputClosed, OmnibusError
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import Segment
from tests.chaos.clients import http, nats
from tests.chaos.clients.planned_request import PAUSE, Note

Send = Callable[[int, str, bool], Awaitable[bool]]
"""Sends a segment, of a number and a text, which may end the input; whether it is known to be stored, or not wanted any more."""
Follow = Callable[[Callable[[int], None]], Coroutine[Any, Any, None]]


async def converse(producer: Producer, note: Note, spec: PipelineSpec) -> None:
    """Hold a session with the Python client."""

    async def send(number: int, text: str, end: bool) -> bool:
        try:
            await producer.send_segment(spec, note.wish.op, Segment(prompt=text, end=end), number=number)
        except InputClosed:
            return True  # its request has ended, which its follower is told
        except OmnibusError as error:
            if not error.retryable and error.http_status != httpx.codes.NOT_FOUND:  # it may not be accepted yet
                raise
            return False
        return True

    await _hold(note, send, lambda answered: nats.produce(producer, note, spec, answered))


async def converse_over_http(client: httpx.AsyncClient, note: Note, model: str) -> None:
    """Hold a session over HTTP, with whichever front door is there."""

    async def send(number: int, text: str, end: bool) -> bool:
        rid = note.rid
        if rid is None:
            return False
        body = {"number": number, "prompt": text, "end": end, "model": model}
        try:
            answer = await client.post(f"/v1/requests/{rid}/input", json=body, timeout=note.seconds_left)
        except httpx.TransportError:
            return False
        if answer.status_code == httpx.codes.OK or answer.json()["error"]["code"] == InputClosed.code:
            return True
        assert answer.headers.get("x-should-retry") == "true", answer.text
        return False

    await _hold(note, send, lambda answered: http.stream(client, note, model, answered))


async def _hold(note: Note, send: Send, follow: Follow) -> None:
    """Follow a session to its end, and send its segments meanwhile: every other session waits for the answer to each."""
    answered, news = set[int](), asyncio.Event()

    def noted(number: int) -> None:
        answered.add(number)
        news.set()

    async def speak() -> None:
        segments = note.wish.segments
        for number, text in enumerate(segments, 1):
            while note.wish.is_polite and number - 1 not in answered:
                news.clear()
                await news.wait()
            while not await send(number, text, number == len(segments)):  # noqa: ASYNC110 as clients try again
                await asyncio.sleep(PAUSE)

    speaking = asyncio.create_task(speak(), name=f"speaking-{note.wish.op}")
    try:
        await follow(noted)
    finally:
        speaking.cancel()
        with suppress(asyncio.CancelledError):
            await speaking
