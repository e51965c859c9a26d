"""What a running job says, on its way to whoever waits: tokens and steps on core NATS."""

from __future__ import annotations

import asyncio

from omnibus.broker.connection import Connection
from omnibus.errors import BrokerError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.wire import codec
from omnibus.wire.out import Fence, Step, Tokens
from omnibus.workers.engines.protocol import Progress, TextDelta

MOST_PENDING = 256 * 1024
"""Characters that wait for a connection that is behind; what comes on top is left out: offsets show the gap, and whoever
misses it asks for it."""

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
