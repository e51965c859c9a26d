"""The text of a stage on its way to the caller: sent while it is made, kept to be repeated, and asked back after a death."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

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
        self._rid, self._stage_id, self._fence = rid, stage_id, fence
        self._offset = 0
        self._token_offset = 0
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
        if not self._waiting:
            return
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send(), name=f"deltas-{self._rid}")

    async def close(self) -> None:
        """Wait until everything has been handed to the connection."""
        if self._sender is not None:
            await self._sender

    def drop(self) -> None:
        """Say nothing more."""
        if self._sender is not None:
            self._sender.cancel()

    def _add_text(self, delta: TextDelta) -> None:
        if self._pending + len(delta.text) > MOST_PENDING:
            self._token_ids.extend(delta.token_ids)
            self._skip(len(delta.text))
            return
        self._text.append(delta.text)
        self._token_ids.extend(delta.token_ids)
        self._pending += len(delta.text)

    def _skip(self, characters: int) -> None:
        """Leave out all that waits and this piece: what follows must not be taken for its continuation."""
        self._offset += self._pending + characters
        self._token_offset += len(self._token_ids)
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
                if self._step is not None:
                    await self._conn.publish(self._subject, codec.encode(self._take_step(self._step)))
        except BrokerError as error:
            log.debug(LogEvent.BROKER_ERROR, rid=self._rid, stage=self._stage_id, error=str(error))

    def _take_tokens(self) -> Tokens:
        text = "".join(self._text)
        made = Tokens(
            rid=self._rid, stage_id=self._stage_id, fence=self._fence,
            offset=self._offset, text=text, token_offset=self._token_offset, token_ids=tuple(self._token_ids),
        )  # fmt: skip
        self._skip(0)
        return made

    def _take_step(self, step: Progress) -> Step:
        self._step = None
        return Step(
            rid=self._rid, stage_id=self._stage_id, fence=self._fence,
            step=step.step, total=step.total, preview=step.preview,
        )  # fmt: skip


@dataclass(slots=True)
class SentText:
    """The text of one attempt, piece by piece."""

    rid: str
    stage_id: int
    fence: Fence
    _pieces: list[TextDelta] = field(default_factory=list)
    _offsets: list[int] = field(default_factory=list)
    """Characters before each piece."""
    _token_offsets: list[int] = field(default_factory=list)
    _characters: int = 0
    _tokens: int = 0
    _full: bool = False

    def add(self, delta: TextDelta) -> None:
        self._full = self._full or self._characters + len(delta.text) > MOST_KEPT
        if self._full:
            return
        self._pieces.append(delta)
        self._offsets.append(self._characters)
        self._token_offsets.append(self._tokens)
        self._characters += len(delta.text)
        self._tokens += len(delta.token_ids)

    def since(self, offset: int) -> Iterator[Tokens]:
        """Messages that hold the text from an offset on, maybe from a little before it.

        Each but the last has SENT_TEXT_PAGE characters or more; the last has fewer, down to none.
        """
        # Of the pieces at this offset the first: tokens that made no text yet belong to what follows.
        first = bisect_left(self._offsets, offset)
        if first > 0 and (first == len(self._offsets) or self._offsets[first] > offset):
            first -= 1
        while True:
            end = self._page_end(first)
            page = self._page(first, end)
            yield page
            if len(page.text) < SENT_TEXT_PAGE:
                return
            first = end

    def _page_end(self, first: int) -> int:
        """The piece after the one with which the page is full."""
        if first >= len(self._offsets):
            return first
        return bisect_left(self._offsets, self._offsets[first] + SENT_TEXT_PAGE, lo=first)

    def _page(self, first: int, end: int) -> Tokens:
        pieces = self._pieces[first:end]
        at_end = first >= len(self._pieces)
        return Tokens(
            rid=self.rid, stage_id=self.stage_id, fence=self.fence,
            offset=self._characters if at_end else self._offsets[first],
            text="".join(piece.text for piece in pieces),
            token_offset=self._tokens if at_end else self._token_offsets[first],
            token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        )  # fmt: skip


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
