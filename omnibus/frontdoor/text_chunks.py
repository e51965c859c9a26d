"""Streams of text: from a request's events to OpenAI's chunks.

The client promises that text pieces are contiguous, that an output comes once, after all its text, and before the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing

from sse_starlette.event import ServerSentEvent

from omnibus.client.request_events import Ended, Output, OutputArrived, TextPiece
from omnibus.frontdoor.answers import Head, Usage, finish_reason, usage
from omnibus.frontdoor.bodies import Answer, StreamOptions
from omnibus.frontdoor.streaming import Lookahead, data
from omnibus.frontdoor.transcoding import transcoded
from omnibus.pipeline.route import Route

PIECE_CHARS = 4096
"""Characters of a text in one event, of 12 bytes each at worst: clients that read lines have a bound on them."""


def live_stage(route: Route) -> int | None:
    """The stage whose text streams as it is written: the first that delivers text; None when none does."""
    return next((stage.stage_id for stage in route.finals if stage.final == "text"), None)


class TextStream:
    """The chunks of one streamed answer. A subclass has the endpoint's shape of `piece` and `totals`."""

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


async def text_events(
    events: Lookahead, stream: TextStream, audio: str | None = None
) -> AsyncIterator[ServerSentEvent]:
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
