"""What the running jobs of a replica have said so far, to be said again to whoever missed it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from omnibus.wire.control import SENT_TEXT_PAGE
from omnibus.wire.out import Fence, Tokens
from omnibus.workers.engines.protocol import TextDelta

MOST_KEPT = 1024 * 1024
"""Characters kept of one text. Of a longer one the rest is not repeated: whoever misses it has it from the output."""


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
    """The texts that one replica is saying, by request and stage."""

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
