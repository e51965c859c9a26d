"""Answers as server-sent events: `data:` lines, comments as pings, an error as a data event, `data: [DONE]` at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing

from fastapi import Request as HttpRequest
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.types import Message, Receive, Scope, Send

from omnibus.client.request_events import ClientEvent, Ended, Output, OutputArrived, TextPiece
from omnibus.errors import DeadlineExceeded, OmnibusError
from omnibus.frontdoor.answers import Usage, finish_reason, transcoded, usage
from omnibus.frontdoor.bodies import Answer, StreamOptions
from omnibus.frontdoor.body_route import naming_fields
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.frontdoor.error_answers import ServerFault, error_json
from omnibus.frontdoor.submitting import Accepted, Head, abandon, unless_gone
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger

PIECE_CHARS = 4096
"""Characters of a text in one event, of 12 bytes each at worst: clients that read lines have a bound on them."""
_SEPARATOR = "\n"
_DONE = ServerSentEvent("[DONE]", sep=_SEPARATOR)
_log = get_logger(__name__)
Events = AsyncGenerator[ClientEvent, None]


def data(answer: Answer, *, event: str | None = None) -> ServerSentEvent:
    """One chunk of an answer."""
    return ServerSentEvent(answer.json_text(), event=event, sep=_SEPARATOR)


async def _events(accepted: Accepted) -> Events:
    """The events of a request until it ends; raises DeadlineExceeded when that takes too long."""
    until = asyncio.get_running_loop().time() + accepted.timeout
    async with aclosing(accepted.submission.events()) as events:
        while True:
            try:
                async with asyncio.timeout_at(until):
                    event = await anext(events)
            except TimeoutError as error:
                raise DeadlineExceeded from error
            yield event
            if isinstance(event, Ended):
                return


async def _with_first(first: asyncio.Task[ClientEvent], rest: Events) -> Events:
    """All events, whose first is waited for already."""
    yield await first
    async for event in rest:
        yield event


async def _cancelled(task: asyncio.Task[ClientEvent]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def event_stream(
    context: FrontDoorContext,
    http: HttpRequest,
    accepted: Accepted,
    pieces: Callable[[Events], AsyncIterator[ServerSentEvent]],
) -> EventSourceResponse:
    """A response that sends what `pieces` makes of the events, as they come.

    It waits a little for the first one: a request that ends at once with an error raises it, and has its own status.
    """
    async with AsyncExitStack() as until_first:
        events = await until_first.enter_async_context(aclosing(_events(accepted)))
        first = asyncio.create_task(anext(events), name=f"first-event-{accepted.rid}")
        until_first.push_async_callback(_cancelled, first)
        await unless_gone(context, http, accepted, asyncio.wait({first}, timeout=context.options.first_event_wait))
        if first.done() and isinstance(event := first.result(), Ended):
            event.result.raise_for_state()
        following = until_first.pop_all()
    return _EventStream(context, accepted, _framed(context, accepted, pieces(_with_first(first, events))), following)


class _EventStream(EventSourceResponse):
    """A stream whose caller, when it goes away or stops reading, takes its request along.

    It closes `following` at its end, whether or not anything of `content` was sent: closing a generator that has not
    begun closes nothing of what it would have used.
    """

    def __init__(
        self,
        context: FrontDoorContext,
        accepted: Accepted,
        content: AsyncIterator[ServerSentEvent],
        following: AsyncExitStack,
    ) -> None:
        self._context, self._accepted, self._following = context, accepted, following
        super().__init__(
            content,
            ping=context.options.ping_interval,
            sep=_SEPARATOR,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep=_SEPARATOR),
            send_timeout=context.options.send_timeout,
            client_close_handler_callable=self._abandoned,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._following:
            try:
                await super().__call__(scope, receive, send)
            except SendTimeoutError:
                await abandon(self._context, self._accepted)

    async def _abandoned(self, _message: Message) -> None:
        await abandon(self._context, self._accepted)


async def _framed(
    context: FrontDoorContext, accepted: Accepted, pieces: AsyncIterator[ServerSentEvent]
) -> AsyncIterator[ServerSentEvent]:
    try:
        with naming_fields(accepted.field_of):
            async with aclosing(pieces):  # type: ignore[type-var]
                async for piece in pieces:
                    yield piece
    except OmnibusError as error:
        yield ServerSentEvent(error_json(error), sep=_SEPARATOR)
    except Exception:  # noqa: BLE001 the root of a stream; its status is out already
        context.metrics.errors.labels("frontdoor").inc()
        _log.exception(LogEvent.TASK_CRASHED, rid=accepted.rid, where="stream")
        yield ServerSentEvent(error_json(ServerFault()), sep=_SEPARATOR)
    yield _DONE


class TextStream:
    """The chunks of one streamed answer. A subclass has the endpoint's shape of `piece` and `totals`.

    The client promises that text pieces are contiguous, that an output comes once, after all its text, and before the end.
    """

    def __init__(self, head: Head, live: int | None, options: StreamOptions | None = None) -> None:
        self.head, self.live = head, live
        self.include_usage = options is not None and bool(options.include_usage)

    def piece(self, text: str | None, reason: str | None = None) -> Answer:
        """A chunk with a piece of the text, or with none; `reason` says why the text has ended."""
        raise NotImplementedError

    def totals(self, total: Usage) -> Answer:
        """A chunk with the tokens alone."""
        raise NotImplementedError

    def opening(self) -> list[Answer]:
        """The chunks before any text."""
        return []

    def text(self, piece: TextPiece) -> list[Answer]:
        """A piece of text; none of stages whose text does not stream."""
        if piece.stage_id != self.live:
            return []
        return [self.piece(piece.text[at : at + PIECE_CHARS]) for at in range(0, len(piece.text), PIECE_CHARS)]

    def output(self, _output: Output) -> Iterable[Answer]:
        """A finished output."""
        return []

    def closing(self, outputs: Sequence[Output]) -> list[Answer]:
        """The last chunks: why it ended, and the tokens when they were asked for."""
        end = self.piece(None, finish_reason(outputs))
        return [end, self.totals(usage(outputs))] if self.include_usage else [end]


async def text_events(stream: TextStream, events: Events, audio: str | None = None) -> AsyncIterator[ServerSentEvent]:
    """The server-sent events of a stream, sound in the format `audio`; raises the error of a request that fails."""
    for chunk in stream.opening():
        yield data(chunk)
    async with aclosing(events):
        async for event in events:
            chunks: Iterable[Answer] = ()
            match event:
                case TextPiece():
                    chunks = stream.text(event)
                case OutputArrived(output=output):
                    chunks = stream.output(await transcoded(output, audio=audio))
                case Ended(result=result):
                    result.raise_for_state()
                    chunks = stream.closing(result.outputs)
            for chunk in chunks:
                yield data(chunk)
