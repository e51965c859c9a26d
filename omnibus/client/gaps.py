"""What was not heard of a running text: asked for again, from the replica that says it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from omnibus.errors import BrokerError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.wire.envelope import Ticket

if TYPE_CHECKING:
    from omnibus.client.channel import Channel

ASK_AGAIN = 1.0
"""Seconds after which the same question is asked again; the answer, or the question, may have been lost."""

log = get_logger(__name__)


class Gaps:
    """Asks for the missing text of one request. Answers come as deltas do, and where none comes the output has it all."""

    def __init__(self, channel: Channel, ticket: Ticket) -> None:
        self._channel, self._ticket = channel, ticket
        self._asked: dict[int, tuple[int, float]] = {}

    async def catch_up(self) -> None:
        """Ask for all that was said before, of every text that the request delivers."""
        for stage in self._ticket.route.finals:
            if stage.final == "text":
                await self.fill(stage.stage_id, 0)

    async def fill(self, stage_id: int, known: int) -> None:
        """Ask for what follows the characters that are known; once, until they are more or the answer is overdue."""
        now = time.monotonic()
        before, at = self._asked.get(stage_id, (-1, 0.0))
        if before == known and now < at + ASK_AGAIN:
            return
        self._asked[stage_id] = (known, now)
        with _tolerated(self._ticket.rid):
            await self._channel.ask_sent_text(self._ticket.rid, stage_id, known)


@contextmanager
def _tolerated(rid: str) -> Iterator[None]:
    try:
        yield
    except BrokerError as error:  # the record has the truth in the end
        log.debug(LogEvent.BROKER_ERROR, rid=rid, error=str(error))
