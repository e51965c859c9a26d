"""Answers as server-sent events: `data:` lines, comments as pings, an error as a data event, `data: [DONE]` at the end."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, suppress

from fastapi import Request as HttpRequest
from fastapi import Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from omnibus.client.request_events import ClientEvent, Ended, Output, OutputArrived, TextPiece
from omnibus.errors import OmnibusError, RequestCancelled
from omnibus.frontdoor.answers import Usage, finish_reason, transcoded, usage
from omnibus.frontdoor.bodies import Answer, StreamOptions, to_json
from omnibus.frontdoor.body_route import naming_fields
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.frontdoor.error_answers import ServerFault, error_json
from omnibus.frontdoor.submitting import Accepted, Head, in_time, unless_gone
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger

PIECE_CHARS = 4096
"""Characters of a text in one event, of 12 bytes each at worst: clients that read lines have a bound on them."""
_HEADERS = {"Cache-Control": "no-store", "Connection": "keep-alive", "X-Accel-Buffering": "no"}
"""No proxy keeps the events back."""
_PING, _DONE = b": ping\n\n", b"data: [DONE]\n\n"
_PLACE = uuid.uuid4().hex
"""Stands for the text in a chunk that is encoded once a stream."""
_log = get_logger(__name__)
Batches = AsyncGenerator[list[ClientEvent], None]
Frames = list[bytes]
Encode = Callable[[ClientEvent, Frames], Awaitable[None]]
"""Appends the frames of an event; raises the error of a request that fails, and what its answer cannot be made for."""


def frame(answer: Answer, *, event: str | None = None) -> bytes:
    """One chunk of an answer as a server-sent event."""
    return _data(to_json(answer), f"event: {event}\n".encode() if event is not None else b"")


def _data(text: bytes, before: bytes = b"") -> bytes:
    return b"%bdata: %b\n\n" % (before, text)


async def event_stream(context: FrontDoorContext, http: HttpRequest, accepted: Accepted, encode: Encode) -> Response:
    """A response that sends the events of a request, as they come, in the frames that `encode` makes of them.

    It waits a little for the first one: a request that ends at once with an error raises it, and has its own status.
    Raises DeadlineExceeded for one that has not ended in its time.
    """
    async with AsyncExitStack() as until_first:
        batches = await until_first.enter_async_context(aclosing(accepted.submission.batches()))
        first = asyncio.create_task(anext(batches), name=f"first-events-{accepted.rid}")
        until_first.push_async_callback(_cancelled, first)
        waited = asyncio.wait({first}, timeout=context.options.first_event_wait)
        await unless_gone(context, http, accepted, in_time(accepted, waited))
        if first.done() and isinstance(event := first.result()[0], Ended):
            event.result.raise_for_state()
        batches, following = _with_first(first, batches), until_first.pop_all()
        return _EventStream(context, http, accepted, encode, batches=batches, following=following)


async def _with_first(first: asyncio.Task[list[ClientEvent]], rest: Batches) -> Batches:
    """All events, the first of which are waited for already."""
    yield await first
    async for events in rest:
        yield events


async def _cancelled(task: asyncio.Task[list[ClientEvent]]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class _EventStream(StreamingResponse):
    """A stream whose caller, when it goes away or stops reading, takes its request along.

    It closes `following` at its end, whether or not anything was sent: closing a generator that has not begun closes
    nothing of what it would have used.
    """

    def __init__(
        self, context: FrontDoorContext, http: HttpRequest, accepted: Accepted, encode: Encode,
        *, batches: Batches, following: AsyncExitStack,
    ) -> None:  # fmt: skip
        super().__init__((), headers=_HEADERS, media_type="text/event-stream")
        self._context, self._http, self._accepted, self._encode = context, http, accepted, encode
        self._batches, self._following = batches, following
        self._frames: Frames = []
        """Frames that are not sent yet."""
        self._sent_at = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 `http` receives
        async with self._following:
            with suppress(RequestCancelled):
                await unless_gone(self._context, self._http, self._accepted, self.stream_response(send))

    async def stream_response(self, send: Send) -> None:
        """Send the whole answer. An error is its last event but one; its status is out already."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        pinging = asyncio.create_task(self._ping(send), name=f"ping-{self._accepted.rid}")
        try:
            with naming_fields(self._accepted.field_of):
                await in_time(self._accepted, self._send_events(send))
        except OmnibusError as error:
            self._frames.append(_data(error_json(error)))
        except Exception:  # noqa: BLE001 the root of a stream
            self._context.metrics.errors.labels("frontdoor").inc()
            _log.exception(LogEvent.TASK_CRASHED, rid=self._accepted.rid, where="stream")
            self._frames.append(_data(error_json(ServerFault())))
        finally:
            pinging.cancel()
        self._frames.append(_DONE)
        await self._send_frames(send, more_body=False)

    async def _send_events(self, send: Send) -> None:
        """Send what has come together in one write, but for the last: that leaves with the end of the stream."""
        async for events in self._batches:
            for event in events:
                await self._encode(event, self._frames)
            if not isinstance(events[-1], Ended):
                await self._send_frames(send)

    async def _send_frames(self, send: Send, *, more_body: bool = True) -> None:
        """Send what is not sent yet; waits while the caller does not read, and the frames stay if that is cancelled."""
        if self._frames:
            body = b"".join(self._frames)
            await send({"type": "http.response.body", "body": body, "more_body": more_body})
            self._frames.clear()
            self._sent_at = time.monotonic()

    async def _ping(self, send: Send) -> None:
        """Send a comment after each silence, so that proxies keep the connection open."""
        interval = self._context.options.ping_interval
        while True:
            await asyncio.sleep(self._sent_at + interval - time.monotonic())
            if time.monotonic() - self._sent_at >= interval:
                self._sent_at = time.monotonic()
                await send({"type": "http.response.body", "body": _PING, "more_body": True})


class TextStream:
    """The chunks of one streamed answer. A subclass has the endpoint's shape of `piece` and `totals`.

    The client promises that text pieces are contiguous, that an output comes once, after all its text, and before the end.
    """

    def __init__(self, head: Head, live: int | None, options: StreamOptions | None = None) -> None:
        self.head, self.live = head, live
        self.include_usage = options is not None and bool(options.include_usage)
        self._before, self._after = frame(self.piece(_PLACE)).split(to_json(_PLACE))

    def piece(self, text: str | None, reason: str | None = None) -> Answer:
        """A chunk with a piece of the text, or with none; `reason` says why the text has ended."""
        raise NotImplementedError

    def totals(self, total: Usage) -> Answer:
        """A chunk with the tokens alone."""
        raise NotImplementedError

    def opening(self) -> list[Answer]:
        """The chunks before any text."""
        return []

    def text(self, text: str) -> Frames:
        """Frames of a piece of the text that streams: of the chunk, encoded once, only the text is new."""
        pieces = (text[at : at + PIECE_CHARS] for at in range(0, len(text), PIECE_CHARS))
        return [b"".join((self._before, to_json(piece), self._after)) for piece in pieces]

    def output(self, _output: Output) -> Iterable[Answer]:
        """A finished output."""
        return []

    def closing(self, outputs: Sequence[Output]) -> list[Answer]:
        """The last chunks: why it ended, and the tokens when they were asked for."""
        end = self.piece(None, finish_reason(outputs))
        return [end, self.totals(usage(outputs))] if self.include_usage else [end]


def text_frames(stream: TextStream, audio: str | None = None) -> Encode:
    """The frames of a stream, sound in the format `audio`."""
    opening: Iterable[Answer] = stream.opening()

    async def encode(event: ClientEvent, frames: Frames) -> None:
        nonlocal opening
        frames += map(frame, opening)
        opening = ()
        match event:
            case TextPiece(stage_id, text):
                frames += stream.text(text) if stage_id == stream.live else ()
            case OutputArrived(output=output):
                frames += map(frame, stream.output(await transcoded(output, audio=audio)))
            case Ended(result=result):
                result.raise_for_state()
                frames += map(frame, stream.closing(result.outputs))

    return encode
