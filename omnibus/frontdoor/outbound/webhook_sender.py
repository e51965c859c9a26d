"""The sender of webhooks: takes each from the queue of all front doors, and puts it back until its endpoint has taken it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from functools import partial
from typing import Self, cast

import msgspec

from omnibus.broker.connection import Connection
from omnibus.broker.delivery import Delivery
from omnibus.broker.delivery_loop import LEFT_TO_OTHERS, serve_always
from omnibus.broker.layout import WEBHOOK_LEASE
from omnibus.broker.puller import Puller
from omnibus.errors import Unreadable
from omnibus.frontdoor.outbound.addresses import AddressRule
from omnibus.frontdoor.outbound.guarded_session import guarded_session, refusal_of
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.webhooks.webhook_event import KEPT, UnknownWebhook, WebhookEndpoint, pause_after, signed_headers
from omnibus.webhooks.webhook_store import QueuedWebhook, WebhookStore
from omnibus.wire import stores

TIMEOUT = 15.0
"""Seconds of one attempt. Invariant: below the lease of a message, so that nobody else sends it meanwhile."""
MOST_AT_ONCE = 64
"""Attempts of one front door at the same time."""
MOST_TO_ONE = 8
"""Those of them to one endpoint: one that is slow holds up no other."""
_log = get_logger(__name__)


class WebhookSender:
    """Sends webhooks, in an `async with`."""

    def __init__(self, connection: Connection, rule: AddressRule) -> None:
        self._connection, self._rule, self._store = connection, rule, WebhookStore(connection)
        self._sent, self._open = connection.metrics.webhooks, Counter[str]()
        self._sending: set[asyncio.Task[object]] = set()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        puller = partial(
            Puller, self._connection, stores.WEBHOOKS_STREAM, [stores.WEBHOOKS_CONSUMER], lease=WEBHOOK_LEASE,
            label="webhooks",
        )  # fmt: skip
        serving = serve_always(self._connection, puller, self, concurrency=MOST_AT_ONCE, where="webhooks")
        self._task = asyncio.create_task(serving, name="webhooks")
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._sending:  # the loop would wait for them
            task.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def handle(self, delivery: Delivery) -> bool:
        """Send one event to its endpoint; False when it was put back. Raises Unreadable for no event, BrokerError."""
        try:
            queued = msgspec.msgpack.decode(delivery.data, type=QueuedWebhook)
        except msgspec.DecodeError as error:
            raise Unreadable(f"the webhook on {delivery.subject!r} cannot be read: {error}") from error
        age = max(self._store.now() - delivery.stored_at, 0.0)
        try:
            endpoint = await self._store.find(queued.tenant, queued.endpoint_id)
        except UnknownWebhook:  # it was removed
            return True
        if await self._held(delivery, self._attempt(endpoint, queued)):
            self._sent.labels("taken").inc()
            return True
        if age > KEPT:
            await self.give_up(delivery, TimeoutError(f"not taken within {KEPT / 86_400:g} days"), dead=False)
            return True
        await delivery.nak(pause_after(age))
        return False

    async def give_up(self, delivery: Delivery, error: Exception, *, dead: bool) -> None:  # noqa: ARG002 it is dropped either way
        """Drop an event that nobody takes; the log tells."""
        self._sent.labels("given_up").inc()
        _log.error(LogEvent.WEBHOOK_GIVEN_UP, subject=delivery.subject, error=str(error))

    async def _held(self, delivery: Delivery, attempt: Coroutine[None, None, bool]) -> bool:
        """The outcome of an attempt; others make it at once where this sender is stopped meanwhile."""
        task = cast("asyncio.Task[object]", asyncio.current_task())
        self._sending.add(task)
        try:
            return await attempt
        except asyncio.CancelledError:
            await delivery.nak(LEFT_TO_OTHERS)
            raise
        finally:
            self._sending.discard(task)

    async def _attempt(self, endpoint: WebhookEndpoint, queued: QueuedWebhook) -> bool:
        """Whether the endpoint has taken it: by a status of 200 to 299, without a redirect."""
        if self._open[endpoint.id] >= MOST_TO_ONE:
            return False
        self._open[endpoint.id] += 1
        try:
            status = await self._posted(endpoint, queued)
        except (OSError, ValueError, _client_error()) as error:
            status = refusal_of(error) or str(error) or type(error).__name__
        finally:
            self._open[endpoint.id] -= 1
            self._open += Counter[str]()  # forgets those at zero
        if isinstance(status, int) and 200 <= status < 300:
            return True
        self._sent.labels("refused").inc()
        _log.warning(LogEvent.WEBHOOK_REFUSED, webhook=endpoint.id, event_id=queued.event.id, status=status)
        return False

    async def _posted(self, endpoint: WebhookEndpoint, queued: QueuedWebhook) -> int | str:
        body = queued.event.body()
        headers = signed_headers(queued.event, body, endpoint.secret, self._store.now())
        async with (
            guarded_session(self._rule, TIMEOUT) as session,
            session.post(endpoint.url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            return answer.status


def _client_error() -> type[Exception]:
    from aiohttp import ClientError  # noqa: PLC0415 as in guarded_session

    return ClientError
