"""The text of a stage on its way to the caller: sent while it is made, kept to be repeated, and asked back after a death."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec.structs import replace

from omnibus.broker.connection import Connection
from omnibus.errors import BrokerError, OmnibusError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.wire import codec, subjects
from omnibus.wire.control import SENT_TEXT_PAGE
from omnibus.wire.envelope import Task
from omnibus.wire.out import AskReceived, Fence, Received, Step, Tokens
from omnibus.workers.engines.protocol import Progress, TextDelta

MOST_PENDING = 256 * 1024
"""Characters that wait for a connection that is behind; what comes on top is left out: offsets show the gap, and a follower
that misses it asks for it."""
MOST_KEPT = 1024 * 1024
"""Characters kept of one text. The rest of a longer one is not repeated: a follower that misses it has it from the output."""
ANSWER_TIMEOUT = 0.2
"""Seconds in which a follower must have answered; with nobody there the stage begins again."""

log = get_logger(__name__)


class Deltas:
    """Publishes the deltas of one attempt, in order, without ever holding the engine up.

    What arrives while a publish is under way leaves together in the next: pieces of text are joined, and of several steps
    the last counts.
    """

    def __init__(self, conn: Connection, subject: str, *, rid: str, stage_id: int, fence: Fence) -> None:
        self._conn, self._subject = conn, subject
        self._next = Tokens(rid=rid, stage_id=stage_id, fence=fence, offset=0, text="")
        """The next message, without what waits for it."""
        self._text: list[str] = []
        self._pending = 0
        self._token_ids: list[int] = []
        self._step: Progress | None = None
        self._sender: asyncio.Task[None] | None = None

    def add(self, item: TextDelta | Progress) -> None:
        if isinstance(item, Progress):
            self._step = item
        else:
            self._add_text(item)
        if self._waiting and (self._sender is None or self._sender.done()):
            self._sender = asyncio.create_task(self._send(), name=f"deltas-{self._next.rid}")

    async def close(self) -> None:
        """Wait until everything has been handed to the connection."""
        if self._sender is not None:
            await self._sender

    def drop(self) -> None:
        """Say nothing more."""
        if self._sender is not None:
            self._sender.cancel()

    def _add_text(self, delta: TextDelta) -> None:
        self._token_ids.extend(delta.token_ids)
        if self._pending + len(delta.text) > MOST_PENDING:
            self._skip(len(delta.text))
            return
        self._text.append(delta.text)
        self._pending += len(delta.text)

    def _skip(self, characters: int = 0) -> None:
        """Leave out all that waits and this piece: what follows must not be taken for its continuation."""
        self._next = _after(self._next, self._pending + characters, len(self._token_ids))
        self._text.clear()
        self._token_ids.clear()
        self._pending = 0

    @property
    def _waiting(self) -> bool:
        # Token ids alone wait for their text: a character may need several.
        return self._pending > 0 or self._step is not None

    async def _send(self) -> None:
        try:
            while self._waiting:
                if self._pending:
                    await self._conn.publish(self._subject, codec.encode(self._take_tokens()))
                if (step := self._step) is not None:
                    self._step, at = None, self._next
                    made = Step(
                        rid=at.rid, stage_id=at.stage_id, fence=at.fence,
                        step=step.step, total=step.total, preview=step.preview,
                    )  # fmt: skip
                    await self._conn.publish(self._subject, codec.encode(made))
        except BrokerError as error:
            log.debug(LogEvent.BROKER_ERROR, rid=self._next.rid, stage=self._next.stage_id, error=str(error))

    def _take_tokens(self) -> Tokens:
        made = replace(self._next, text="".join(self._text), token_ids=tuple(self._token_ids))
        self._skip()
        return made


class SentText:
    """The text of one attempt, piece by piece."""

    def __init__(self, rid: str, stage_id: int, fence: Fence) -> None:
        self._pieces: list[Tokens] = []
        self._end = Tokens(rid=rid, stage_id=stage_id, fence=fence, offset=0, text="")
        self._full = False

    def add(self, delta: TextDelta) -> None:
        self._full = self._full or self._end.offset + len(delta.text) > MOST_KEPT
        if self._full:
            return
        self._pieces.append(replace(self._end, text=delta.text, token_ids=tuple(delta.token_ids)))
        self._end = _after(self._end, len(delta.text), len(delta.token_ids))

    def since(self, offset: int) -> Iterator[Tokens]:
        """Messages that hold the text from an offset on, maybe from a little before it.

        Each but the last has SENT_TEXT_PAGE characters or more; the last has fewer, down to none.
        """
        # Of the pieces at this offset the first: tokens that made no text yet belong to what follows.
        first = bisect_left(self._pieces, offset, key=_offset)
        if first > 0 and (first == len(self._pieces) or self._pieces[first].offset > offset):
            first -= 1
        while True:
            begin = self._pieces[first] if first < len(self._pieces) else self._end
            last = bisect_left(self._pieces, begin.offset + SENT_TEXT_PAGE, lo=first, key=_offset)
            pieces = self._pieces[first:last]
            text = "".join(piece.text for piece in pieces)
            yield replace(begin, text=text, token_ids=tuple(token for piece in pieces for token in piece.token_ids))
            if len(text) < SENT_TEXT_PAGE:
                return
            first = last


def _offset(piece: Tokens) -> int:
    return piece.offset


def _after(piece: Tokens, characters: int, tokens: int) -> Tokens:
    """The place that many characters and tokens behind the beginning of a piece."""
    return replace(piece, offset=piece.offset + characters, token_offset=piece.token_offset + tokens)


class SentTexts:
    """The texts that one replica is sending, by request and stage."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, int], SentText] = {}

    @contextmanager
    def kept(self, rid: str, stage_id: int, fence: Fence) -> Iterator[SentText]:
        """Keep what one attempt says while it runs; a later attempt here takes its place."""
        sent_text = self._running[rid, stage_id] = SentText(rid, stage_id, fence)
        try:
            yield sent_text
        finally:
            if self._running.get((rid, stage_id)) is sent_text:
                del self._running[rid, stage_id]

    def of(self, rid: str, stage_id: int) -> SentText | None:
        return self._running.get((rid, stage_id))


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
