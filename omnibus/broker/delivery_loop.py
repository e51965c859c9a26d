"""The loop over one queue: messages are handled side by side, retried, and given up after enough errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn, Protocol

from omnibus.broker.connection import Connection
from omnibus.broker.delivery import Delivery
from omnibus.broker.puller import Puller
from omnibus.errors import BrokerError, OmnibusError, Unreadable
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.task_root import task_root

ATTEMPTS = 5
"""Errors that nobody foresaw after which a message is given up."""
LEFT_TO_OTHERS = 0.3
"""Seconds after which a message comes to others that is left as its process ends: its puller is gone by then, and does not get
it again."""
_MOST_COUNTED = 4096
"""Messages whose errors are counted at the same time; beyond it the oldest begins anew."""
_DRAIN = 5.0
_RETRY = 0.5
"""Seconds after which a message that met an outage is delivered again."""
_LONGEST_RETRY = 10.0
"""The same for a message that nobody can handle, so that it costs next to nothing; the delay doubles up to here."""
_AGAIN = 1.0
"""Seconds after which a loop that failed begins again."""

log = get_logger(__name__)


class Handler(Protocol):
    """The decisions about the messages of one queue."""

    async def handle(self, delivery: Delivery) -> bool:
        """Handle a message, which is acknowledged then; False when it was put back. Raises BrokerError: it comes again."""

    async def give_up(self, delivery: Delivery, error: Exception, *, dead: bool) -> None:
        """End what a message is about, which cannot be handled, ever; `dead` after ATTEMPTS errors that nobody foresaw."""


class DeliveryLoop:
    """Handles the deliveries of a puller, so many at a time.

    Invariant: errors are counted, not deliveries. A message that is put back, because the pipeline is full or its record is
    not there yet, or that met an outage, is delivered many times before its first error.
    """

    def __init__(
        self, connection: Connection, puller: Puller, handler: Handler, *, concurrency: int, where: str = "orchestrator"
    ) -> None:
        """`where` is what its errors are counted under."""
        self._metrics, self._puller, self._handler = connection.metrics, puller, handler
        self._concurrency, self._where = concurrency, where
        self._errors: dict[tuple[int, float], int] = {}
        """By the stream sequence and the time of the message: a stream that is made anew counts from 1 again."""

    async def run(self) -> None:
        """Serve until cancelled. What waits then goes back to the queue, and what is in hand is finished for a while."""
        running: set[asyncio.Task[None]] = set()

        def finished(task: asyncio.Task[None]) -> None:
            running.discard(task)
            self._puller.add_credit()

        def deliver(delivery: Delivery) -> None:
            task = asyncio.create_task(self._guarded(delivery), name=delivery.subject)
            running.add(task)
            task.add_done_callback(finished)

        self._puller.deliver = deliver
        try:
            async with self._puller as puller:
                puller.add_credit(self._concurrency)
                await puller.until_failed()
        finally:
            if running:
                await asyncio.wait(running, timeout=_DRAIN)

    async def _guarded(self, delivery: Delivery) -> None:
        try:
            if await self._handle(delivery):
                await delivery.ack()
        except BrokerError as error:
            log.warning(LogEvent.EVENT_FAILED, subject=delivery.subject, error=str(error))
            await self._retry(delivery, _RETRY)
        except Exception:
            self._metrics.errors.labels(where=self._where).inc()
            log.exception(LogEvent.TASK_CRASHED, subject=delivery.subject, delivery=delivery.num_delivered)
            doublings = min(self._errors.get(_key(delivery), delivery.num_delivered) - 1, 10)
            await self._retry(delivery, min(_RETRY * 2**doublings, _LONGEST_RETRY))

    async def _handle(self, delivery: Delivery) -> bool:
        try:
            is_handled = await self._handler.handle(delivery)
        except Exception as error:
            # Of what cannot be read, another orchestrator may be of a version that can.
            may_pass = not isinstance(error, OmnibusError) or isinstance(error, BrokerError | Unreadable)
            is_outage = isinstance(error, BrokerError) and error.retryable
            if is_outage or (may_pass and self._count(delivery) < ATTEMPTS):
                raise
            await self._handler.give_up(delivery, error, dead=may_pass)
            is_handled = True
        if is_handled:
            self._errors.pop(_key(delivery), None)
        return is_handled

    def _count(self, delivery: Delivery) -> int:
        """The errors of a message, with this one."""
        count = self._errors[_key(delivery)] = self._errors.pop(_key(delivery), 0) + 1
        if len(self._errors) > _MOST_COUNTED:
            del self._errors[next(iter(self._errors))]
        return count

    async def _retry(self, delivery: Delivery, delay: float) -> None:
        try:
            await delivery.nak(delay)
        except BrokerError:  # delivered again after the ack wait, then
            log.warning(LogEvent.ACK_FAILED, subject=delivery.subject)


async def serve_always(
    connection: Connection, puller: Callable[[], Puller], handler: Handler, *, concurrency: int, where: str
) -> NoReturn:
    """Serve a queue until cancelled; the loop begins again, with a new puller, after a fault of its own."""
    while True:
        with task_root(where, connection.metrics):
            await DeliveryLoop(connection, puller(), handler, concurrency=concurrency, where=where).run()
        await asyncio.sleep(_AGAIN)


def _key(delivery: Delivery) -> tuple[int, float]:
    return delivery.stream_seq, delivery.stored_at
