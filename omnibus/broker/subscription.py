"""Interest in a subject: each message goes to a callback, in order."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from omnibus.broker.replies import ReceivedMessage
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.task_root import report

if TYPE_CHECKING:
    from omnibus.broker.link import Link

Callback = Callable[[ReceivedMessage], Awaitable[None] | None]
"""Called with each message: a plain function in the turn of the loop in which it arrives, a coroutine function from a task."""
MOST_WAITING, MOST_BYTES = 65_536, 64 << 20
"""Messages that may wait for a coroutine, and bytes in them. What arrives beyond them is dropped, and counted."""

log = get_logger(__name__)


class Subscription:
    """Made by `Link.subscribe`. What the callback raises is logged and counted."""

    def __init__(self, link: Link, subject: str, callback: Callback, queue: str) -> None:
        self._link, self._subject, self._callback = link, subject, callback
        self._is_plain = not inspect.iscoroutinefunction(callback)
        self._is_inbox = subject.startswith("_INBOX")
        self._expected = re.split(r"[*>]", subject)[0]
        self._waiting: deque[ReceivedMessage] = deque()
        self._bytes = 0
        self._work: asyncio.Task[None] | None = None
        self._sid = link.client.listen(subject, queue, self._receive)

    async def unsubscribe(self) -> None:
        """Stop receiving; what has arrived and was not handled yet is dropped."""
        self._link.client.forget(self._sid)
        self._link.forget(self)
        self.stop()

    async def drain(self) -> None:
        """Stop receiving; what has arrived is handled first. Raises BrokerUnavailable."""
        self._link.client.stop_sending(self._sid)
        await self._link.flush()
        self._link.client.forget(self._sid)
        self._link.forget(self)
        if self._work is not None:
            await asyncio.wait((self._work,))

    def stop(self) -> None:
        """Handle nothing any more."""
        self._waiting.clear()
        self._bytes = 0
        if self._work is not None and self._work is not asyncio.current_task():
            self._work.cancel()

    def _receive(self, message: ReceivedMessage) -> None:
        if not self._is_inbox and not message.subject.startswith(self._expected):
            # A user who may create a consumer can have what a stream holds delivered to any listener.
            self._complain(f"{message.subject} was delivered on {self._subject}")
        elif self._is_plain:
            try:
                self._callback(message)
            except Exception as error:  # noqa: BLE001 the reader must go on
                self._report(error, message)
        elif len(self._waiting) >= MOST_WAITING or self._bytes + len(message.data) > MOST_BYTES:
            self._link.metrics.errors.labels("subscription").inc()
            self._complain(f"too many messages wait on {self._subject}: one was dropped")
        else:
            self._waiting.append(message)
            self._bytes += len(message.data)
            if self._work is None or self._work.done():
                self._work = asyncio.create_task(self._work_off(), name=f"subscription {self._subject}")

    async def _work_off(self) -> None:
        while self._waiting:
            message = self._waiting.popleft()
            self._bytes -= len(message.data)
            handled = self._callback(message)
            assert handled is not None, "it is a coroutine function"
            try:
                await handled
            except Exception as error:  # noqa: BLE001 a task's root
                self._report(error, message)

    def _report(self, error: Exception, message: ReceivedMessage) -> None:
        report(error, "subscription", self._link.metrics, subject=message.subject, client=self._link.name)

    def _complain(self, error: str) -> None:
        log.error(LogEvent.BROKER_ERROR, client=self._link.name, error=error)
