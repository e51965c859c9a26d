"""Questions of workers about requests that have ended: what those have left is removed, so many at a time."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from omnibus.broker.connection import Connection, ReceivedMessage
from omnibus.ledger.performer import Performer, latest_run
from omnibus.observability.task_root import task_root
from omnibus.wire import subjects
from omnibus.wire.names import is_name

_AT_ONCE = 32
"""Questions that one orchestrator has in hand: the worker that asks keeps a slot until it has the answer."""
_MOST_WAITING = 4096
"""Questions that wait for their turn; what is asked beyond that is not answered, and asked again or done by the asker."""


class OrphanQuestions:
    """Answers for one orchestrator of a pipeline: each question goes to one of them."""

    def __init__(self, connection: Connection, performer: Performer) -> None:
        self._connection, self._performer = connection, performer
        self._waiting: asyncio.Queue[ReceivedMessage] = asyncio.Queue(_MOST_WAITING)

    async def run(self) -> None:
        """Answer until cancelled; no failure of a question ends it. Raises BrokerError when it cannot listen."""
        subject = subjects.questions(self._performer.pipeline, "orphans")
        asked = await self._connection.subscribe(subject, self._on_question, queue="orchestrators")
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(_AT_ONCE):
                    group.create_task(self._answer_all(), name=f"orphan-questions-{number}")
        finally:
            await asked.unsubscribe()

    def _on_question(self, message: ReceivedMessage) -> None:
        """A worker stored something too late for its request's end, or ended requests whose timers its role may not remove."""
        timers = [entry.split(".") for entry in message.data.decode(errors="replace").split(" ") if "." in entry]
        for nonce, rid in (timer for timer in timers if len(timer) == 2 and all(map(is_name, timer))):
            self._performer.queue.cancel_deadline(rid, nonce)
        if not timers:
            with suppress(asyncio.QueueFull):
                self._waiting.put_nowait(message)

    async def _answer_all(self) -> None:
        while True:
            message = await self._waiting.get()
            with task_root("orphan questions", self._connection.metrics, pipeline=self._performer.pipeline):
                await self._answer(message)

    async def _answer(self, message: ReceivedMessage) -> None:
        rid = message.data.decode(errors="replace")
        if is_name(rid):
            run = latest_run(await self._performer.clear_orphans(rid))
            if message.reply:
                await self._connection.publish(message.reply, str(run).encode())
