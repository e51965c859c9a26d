"""The text of a stage on its way to the caller: sent while it is made, kept to be repeated, and asked back after a death."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter

from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.errors import BrokerError, OmnibusError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.wire import codec, subjects
from omnibus.wire.control import SENT_TEXT_PAGE
from omnibus.wire.envelope import Task
from omnibus.wire.out import AskReceived, Fence, FieldDelta, Received, Step, Tokens
from omnibus.workers.engines.protocol import Progress, SegmentEnd, TextDelta

WINDOW = 0.005
"""Seconds for which a piece of text may wait for the next ones, once one has left: the first leaves at once."""
MOST_PENDING = 256 * 1024
"""Bytes of one message, as they are encoded, and so those that wait for a connection that is behind; more are not sent: offsets
show the gap, and a follower that misses them asks for them."""
_SLICE = 32 * 1024
"""Characters of a longer text or field that are in one message, at most."""
_TOKEN_BYTES, _FIELD_BYTES = 5, 64
"""Bytes that a token takes, and a piece of a field beside its text, at most; a name has less than 32."""
MOST_KEPT = 1024 * 1024
"""Characters kept of one text and its fields. The rest of a longer one is not repeated: a follower that misses it has it
from the output."""
ANSWER_TIMEOUT = 0.2
"""Seconds in which a follower must have answered; with nobody there the stage begins again."""

_offset = attrgetter("offset")
log = get_logger(__name__)


class DeltaStream:
    """The text and the progress of one attempt: what waits to be sent, and what can be sent again. Made by `DeltaStreams`."""

    def __init__(self, rid: str, stage_id: int, fence: Fence, subject: str | None = None) -> None:
        """`subject` is where a follower listens; None: nothing is sent unasked."""
        self.subject = subject
        self.in_window = False
        self.sent_at = 0.0
        """When the last message left, on the monotonic clock."""
        self._next = Tokens(rid=rid, stage_id=stage_id, fence=fence, offset=0, text="")
        """The next message, without the text and the tokens that wait for it."""
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._segments: list[int] = []
        self._fields: list[FieldDelta] = []
        self._offsets: dict[str, int] = {}
        """Characters of each field so far."""
        self._pending = 0
        """Characters that wait, those of fields too."""
        self._nbytes = 0
        """Bytes of what waits, at most."""
        self._text_pending = 0
        self._step: Progress | None = None
        self._kept = [self._next]
        self._is_full = False

    @property
    def has_news(self) -> bool:
        # Token ids alone wait for their text: a character may need several.
        return self._pending > 0 or self._step is not None or bool(self._segments)

    def add(self, item: TextDelta | Progress | SegmentEnd) -> None:
        """Have an item wait: text is joined to what waits already; of several steps the last counts, and the last preview."""
        if isinstance(item, Progress):
            if item.preview is None and self._step is not None:
                item = dataclasses.replace(item, preview=self._step.preview)
            self._step = item
            return
        if isinstance(item, SegmentEnd):
            self._segments.append(self._next.offset + self._text_pending)
            return
        nbytes = _nbytes(item)
        if nbytes > MOST_PENDING // 2:
            for part in _sliced(item):
                self._add_delta(part, _nbytes(part))
        else:
            self._add_delta(item, nbytes)

    def _add_delta(self, item: TextDelta, nbytes: int) -> None:
        if self._nbytes + nbytes > MOST_PENDING:
            self._take()
        if item.fields:
            self._add_fields(item.fields)
        if item.prompt_tokens:
            self._next = replace(self._next, prompt_tokens=item.prompt_tokens)
        self._texts.append(item.text)
        self._token_ids.extend(item.token_ids)
        self._pending += len(item.text)
        self._text_pending += len(item.text)
        self._nbytes += nbytes

    def _add_fields(self, fields: Mapping[str, str]) -> None:
        at = self._next.offset + self._text_pending
        for name, text in fields.items():
            offset = self._offsets.get(name, 0)
            last = self._fields[-1] if self._fields else None
            if last is not None and (last.name, last.at) == (name, at):
                self._fields[-1] = FieldDelta(name, last.offset, at, last.text + text)
            else:
                self._fields.append(FieldDelta(name, offset, at, text))
            self._offsets[name] = offset + len(text)
            self._pending += len(text)

    def next(self) -> Tokens | Step | None:
        """The next message to send, None when nothing waits."""
        if self._pending or self._segments:
            return self._take()
        step, self._step = self._step, None
        if step is None:
            return None
        at = self._next
        return Step(
            rid=at.rid, stage_id=at.stage_id, fence=at.fence, step=step.step, total=step.total, preview=step.preview
        )

    def since(self, offset: int) -> Iterator[Tokens]:
        """Messages that hold the text from an offset on, maybe from a little before it.

        Each but the last has SENT_TEXT_PAGE characters or more; the last has fewer, down to none.
        """
        waiting = self._waiting()
        pieces = [*self._kept, waiting] if self._fits(waiting) else self._kept
        page, size = list[Tokens](), 0
        for piece in pieces[max(bisect_left(pieces, offset, key=_offset) - 1, 0) :]:
            page.append(piece)
            size += piece.size
            if size >= SENT_TEXT_PAGE:
                yield _joined(page)
                page, size = [], 0
        yield _joined(page) if page else _after(pieces[-1])

    def _take(self) -> Tokens:
        piece = self._waiting()
        self._is_full = not self._fits(piece)
        if not self._is_full:
            self._kept.append(piece)
        self._next = _after(piece)
        self._texts.clear()
        self._token_ids.clear()
        self._segments.clear()
        self._fields.clear()
        self._pending = self._text_pending = self._nbytes = 0
        return piece

    def _waiting(self) -> Tokens:
        texts, token_ids, segments = "".join(self._texts), tuple(self._token_ids), tuple(self._segments)
        piece = replace(self._next, text=texts, token_ids=token_ids, segments=segments)
        return replace(piece, fields=tuple(self._fields)) if self._fields else piece

    def _fits(self, piece: Tokens) -> bool:
        return not self._is_full and piece.offset + piece.fields_offset + piece.size <= MOST_KEPT


def _nbytes(item: TextDelta) -> int:
    nbytes = len(item.text.encode()) + _TOKEN_BYTES * len(item.token_ids)
    if item.fields:
        nbytes += sum(len(text.encode()) + _FIELD_BYTES for text in item.fields.values())
    return nbytes


def _sliced(item: TextDelta) -> Iterator[TextDelta]:
    """A large delta in parts: its fields, cut behind a line where there is one, its text, and its tokens with the last."""
    for name, text in item.fields.items():
        for part in _slices(text):
            yield TextDelta(text="", fields={name: part})
    *parts, last = _slices(item.text)
    yield from (TextDelta(text=part) for part in parts)
    yield TextDelta(text=last, token_ids=item.token_ids, prompt_tokens=item.prompt_tokens)


def _slices(text: str) -> Iterator[str]:
    while len(text) > _SLICE:
        end = text.rfind("\n", 0, _SLICE) + 1 or _SLICE
        yield text[:end]
        text = text[end:]
    yield text


def _after(piece: Tokens) -> Tokens:
    """The place behind a piece."""
    offset, tokens = piece.offset + len(piece.text), piece.token_offset + len(piece.token_ids)
    ended = piece.segment_offset + len(piece.segments)
    after = replace(
        piece,
        offset=offset,
        text="",
        token_offset=tokens,
        token_ids=(),
        segment_offset=ended,
        segments=(),
        prompt_tokens=0,
    )
    return replace(after, fields_offset=piece.fields_offset + piece.fields_size, fields=()) if piece.fields else after


def _joined(pieces: Sequence[Tokens]) -> Tokens:
    token_ids = tuple(token for piece in pieces for token in piece.token_ids)
    segments = tuple(end for piece in pieces for end in piece.segments)
    fields = tuple(field for piece in pieces for field in piece.fields)
    text = "".join(piece.text for piece in pieces)
    return replace(pieces[0], text=text, token_ids=token_ids, segments=segments, fields=fields)


class DeltaStreams:
    """The streams of one replica, by request and stage.

    The first piece of a text leaves at once. What comes within WINDOW of the last one waits for the end of the window,
    which is one for all streams, so that their messages leave together. No engine is held up: while the connection takes no
    more, a text waits for its next piece or its end.
    """

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._running: dict[tuple[str, int], DeltaStream] = {}
        self._in_window: list[DeltaStream] = []
        self._window_end = 0.0

    @contextmanager
    def running(self, rid: str, stage_id: int, fence: Fence, subject: str | None = None) -> Iterator[DeltaStream]:
        """Keep what one attempt makes while it runs; a later attempt here takes its place. Afterwards nothing is sent."""
        stream = self._running[rid, stage_id] = DeltaStream(rid, stage_id, fence, subject)
        try:
            yield stream
        finally:
            stream.subject = None
            if self._running.get((rid, stage_id)) is stream:
                del self._running[rid, stage_id]

    def of(self, rid: str, stage_id: int) -> DeltaStream | None:
        return self._running.get((rid, stage_id))

    def add(self, stream: DeltaStream, item: TextDelta | Progress | SegmentEnd) -> None:
        """Keep an item, and send it now or soon where anybody listens."""
        stream.add(item)
        if stream.subject is None or stream.in_window or not stream.has_news:
            return
        now = time.monotonic()
        if now >= stream.sent_at + WINDOW:
            self._send(stream, now)
            return
        if not self._in_window:
            next_end = self._window_end + WINDOW
            self._window_end = next_end if next_end > now else now + WINDOW
            asyncio.get_running_loop().call_later(self._window_end - now, self._end_window)
        stream.in_window = True
        self._in_window.append(stream)

    async def repeat(self, rid: str, stage_id: int, offset: int, subject: str) -> None:
        """Send the text from an offset on again, to a follower that asks; raises BrokerError.

        A follower that asks for what nobody is sent is sent the rest unasked, and the progress.
        """
        stream = self._running.get((rid, stage_id))
        if stream is None:
            return
        for page in stream.since(offset):
            await self._conn.publish(subject, codec.encode(page))
        if stream.subject is None and subjects.is_out(subject, rid) and stream is self.of(rid, stage_id):
            stream.subject = subject
            await self.flush(stream)

    async def flush(self, stream: DeltaStream) -> None:
        """Hand all that waits to the connection, when it takes more."""
        if not stream.has_news:
            return
        with _leaving_a_gap(stream):
            while stream.subject is not None and (message := stream.next()) is not None:
                await self._conn.publish(stream.subject, codec.encode(message))

    def _end_window(self) -> None:
        ended, self._in_window = self._in_window, []
        now = time.monotonic()
        for stream in ended:
            stream.in_window = False
            self._send(stream, now)

    def _send(self, stream: DeltaStream, now: float) -> None:
        if self._conn.is_full:
            return
        stream.sent_at = now
        with _leaving_a_gap(stream):
            while stream.subject is not None and (message := stream.next()) is not None:
                self._conn.send(stream.subject, codec.encode(message))


@contextmanager
def _leaving_a_gap(stream: DeltaStream) -> Iterator[None]:
    """Log that the broker took no message: its follower notices the gap, and asks."""
    try:
        yield
    except BrokerError as error:
        log.debug(LogEvent.BROKER_ERROR, subject=stream.subject, error=str(error))


async def received(conn: Connection, task: Task, fence: Fence) -> tuple[int, ...]:
    """Token ids that a follower of the request has passed on of this stage; empty when nobody answers.

    From its answer on, the follower drops what comes of attempts below the fence.
    """
    ticket = task.ticket
    if ticket.front is None:
        return ()
    question = AskReceived(rid=ticket.rid, stage_id=task.stage_id, fence=fence)
    subject = subjects.out(ticket.pipeline, ticket.front, ticket.rid)
    try:
        answer = await conn.request(subject, codec.encode(question), timeout=ANSWER_TIMEOUT)
        known: Received = codec.decode(answer.data, Received)
    except OmnibusError:
        return ()
    return known.token_ids
