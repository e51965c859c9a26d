"""Answers as server-sent events: `data:` lines, comments as pings, an error as a data event, `data: [DONE]` at the end."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, aclosing

from fastapi import Request as HttpRequest
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from omnibus.client.request_events import (
    ClientEvent,
    Ended,
    FieldPiece,
    MediaPiece,
    Output,
    OutputArrived,
    SegmentFinished,
    TextPiece,
)
from omnibus.client.stream_cursor import PIECE_CHARS
from omnibus.errors import OmnibusError
from omnibus.frontdoor.answers import Usage, finish_reason, usage, usage_of
from omnibus.frontdoor.bodies import Answer, StreamOptions, to_json
from omnibus.frontdoor.body_route import naming_fields
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.frontdoor.error_answers import ServerFault, error_json, error_response
from omnibus.frontdoor.live_sound import LiveSound
from omnibus.frontdoor.live_video import LiveVideo
from omnibus.frontdoor.submitting import Accepted, CallerGone, Head, in_time, unless_gone
from omnibus.frontdoor.waiting_time import waiting
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.wire.envelope import StageTiming

STREAM_HEADERS = {"Cache-Control": "no-store", "Connection": "keep-alive", "X-Accel-Buffering": "no"}
"""No proxy keeps the events back."""
PING, DONE = b": ping\n\n", b"data: [DONE]\n\n"
_PLACE = uuid.uuid4().hex
"""Stands for the text in a chunk that is encoded once a stream."""
_log = get_logger(__name__)
Frames = list[bytes]
Encode = Callable[[ClientEvent, Frames], Awaitable[None]]
"""Appends the frames of an event; raises the error of a request that fails, and what its answer cannot be made for."""


def frame(answer: Answer, *, event: str | None = None, event_id: str | None = None) -> bytes:
    """One chunk of an answer as a server-sent event."""
    named = f"id: {event_id}\n" if event_id is not None else ""
    return _data(to_json(answer), f"{named}event: {event}\n".encode() if event is not None else named.encode())


def error_frame(error: OmnibusError) -> bytes:
    """An error as the last event but one."""
    return _data(error_json(error))


def _data(text: bytes, before: bytes = b"") -> bytes:
    return b"%bdata: %b\n\n" % (before, text)


class EventStream(StreamingResponse):
    """A response that sends the events of a request, as they come, in the frames that `encode` makes of them.

    It waits a little for the first one: a request that ends at once with an error has its own status. Later an error is
    the last event but one. With an open input it waits for none: the caller needs the id for the next segment. A caller
    that goes away or stops reading takes its request along.
    """

    def __init__(
        self, context: FrontDoorContext, http: HttpRequest, accepted: Accepted, encode: Encode,
        media_type: str = "text/event-stream",
    ) -> None:  # fmt: skip
        super().__init__((), headers=STREAM_HEADERS, media_type=media_type)
        self._context, self._http, self._accepted, self._encode = context, http, accepted, encode
        self._has_begun, self._is_open = False, accepted.submission.ticket.resumable
        self._frames: Frames = []
        """Frames that are not sent yet."""
        self._sent_at = time.monotonic()
        self._waiting = ExitStack()
        """Until it begins."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._waiting.enter_context(waiting(scope))
        try:
            if self._is_open:
                await self._begin(send)
            with naming_fields(self._accepted.field_of):
                work = in_time(self._accepted, self.stream_response(send))
                await unless_gone(self._context, self._http, self._accepted, work)
        except OmnibusError as error:
            if not self._has_begun:
                await error_response(error)(scope, receive, send)
            if self._has_begun and not isinstance(error, CallerGone):
                await self._end(send, error)
        except Exception:
            if not self._has_begun:
                raise
            self._context.metrics.errors.labels("frontdoor").inc()
            _log.exception(LogEvent.TASK_CRASHED, rid=self._accepted.rid, where="stream")
            await self._end(send, ServerFault())
        else:
            await self._end(send)
        finally:
            self._waiting.close()

    async def stream_response(self, send: Send) -> None:
        """Send what has come together in one write, but for the last: that leaves with the end of the stream."""
        async with aclosing(self._accepted.submission.batches()) as batches:
            async for events in batches:
                last, silence = events[-1] if events else None, time.monotonic() - self._sent_at
                if not self._has_begun:
                    if events and isinstance(events[0], Ended):
                        events[0].result.raise_for_state()
                    if not events and silence < self._context.options.first_event_wait:
                        continue
                    await self._begin(send)
                for event in events:
                    await self._encode(event, self._frames)
                if not events and silence >= self._context.options.ping_interval:
                    self._frames.append(PING)
                if self._frames and not isinstance(last, Ended):
                    await self._send(send)

    async def _begin(self, send: Send) -> None:
        self._has_begun = True
        self._waiting.close()
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

    async def _end(self, send: Send, error: OmnibusError | None = None) -> None:
        self._frames += (error_frame(error), DONE) if error is not None else (DONE,)
        await self._send(send, more_body=False)

    async def _send(self, send: Send, *, more_body: bool = True) -> None:
        """Waits while the caller does not read; the frames stay if that is cancelled."""
        await send({"type": "http.response.body", "body": b"".join(self._frames), "more_body": more_body})
        self._frames.clear()
        self._sent_at = time.monotonic()


class FileStream(EventStream):
    """A response that is a file, sent while it is made: it begins with the first bytes.

    A file has no place for an error: after its beginning the connection ends, and the caller sees that bytes are missing.
    """

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._accepted.submission.batches()) as batches:
            async for events in batches:
                for event in events:
                    await self._encode(event, self._frames)
                if any(self._frames):
                    if not self._has_begun:
                        await self._begin(send)
                    await self._send(send)

    async def _end(self, send: Send, error: OmnibusError | None = None) -> None:
        if error is None:
            await self._send(send, more_body=False)


def sliced(text: str) -> Iterator[str]:
    """A text in pieces of one event each."""
    return (text[at : at + PIECE_CHARS] for at in range(0, len(text), PIECE_CHARS))


class TextStream:
    """The chunks of one streamed answer. A subclass has the endpoint's shape of `piece` and `totals`.

    The client promises that text pieces are contiguous, that an output comes once, after all its text, and before the end.
    """

    def __init__(self, head: Head, live: int | None, options: StreamOptions | None = None, audio: str = "wav") -> None:
        """`live` is the stage whose text streams; `audio` the format of sound."""
        self.head, self.live, self.live_sound, self.live_video = head, live, LiveSound(audio), LiveVideo()
        self.include_usage = options is not None and bool(options.include_usage)
        self._shows_usage = options is not None and bool(options.continuous_usage_stats)
        self.so_far: Usage | None = None
        """Tokens so far, where every chunk has them."""
        self.sent: list[str] = []
        """The text that streamed, in pieces."""
        self._before, self._after = frame(self.piece(_PLACE)).split(to_json(_PLACE))
        self._opening: Iterable[Answer] = self.opening()

    async def encode(self, event: ClientEvent, frames: Frames) -> None:
        """Append the frames of an event; raises the error of a request that fails."""
        frames += map(frame, self._opening)
        self._opening = ()
        match event:
            case TextPiece(stage_id, text, counts):
                if stage_id == self.live and self._shows_usage and counts is not None:
                    self.so_far = usage_of(counts)
                frames += self.text(text) if stage_id == self.live else ()
            case FieldPiece(stage_id, name, text):
                frames += map(frame, self.field(name, text)) if stage_id == self.live else ()
            case SegmentFinished(stage_id, number):
                frames += [frame({**self.piece(""), "segment_finished": number})] if stage_id == self.live else ()
            case MediaPiece():
                frames += map(frame, self.sound(await self.live_sound.piece(event)))
                frames += map(frame, self.video(await self.live_video.piece(event)))
            case OutputArrived(output=output):
                rest = await self.live_video.rest(output)
                made = self.output(await self.live_sound.ready(output)) if rest is None else self.video(rest)
                frames += map(frame, made)
            case Ended(result=result):
                result.raise_for_state()
                frames += map(frame, self.closing(result.outputs, result.timings))

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
        self.sent.append(text)
        if self.so_far is not None:
            return [frame(self.piece(piece)) for piece in sliced(text)]
        return [b"".join((self._before, to_json(piece), self._after)) for piece in sliced(text)]

    def field(self, _name: str, _text: str) -> Iterable[Answer]:
        """The next piece of what the answer has beside its text."""
        return []

    def sound(self, _data: bytes) -> Iterable[Answer]:
        """The next bytes of the sound, maybe none."""
        return []

    def video(self, _data: bytes) -> Iterable[Answer]:
        """The next bytes of the video, maybe none."""
        return []

    def output(self, _output: Output) -> Iterable[Answer]:
        """A finished output, or what is left of it."""
        return []

    def closing(self, outputs: Sequence[Output], timings: Sequence[StageTiming] = ()) -> list[Answer]:
        """The last chunks: why it ended, and the tokens when they were asked for."""
        end = self.piece(None, finish_reason(outputs))
        return [end, self.totals(usage(outputs, timings))] if self.include_usage else [end]
