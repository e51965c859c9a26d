"""Endpoints of webhooks in a bucket, and a queue of what is to be sent to each: a message for an event and an endpoint."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.errors import BrokerDenied, BrokerRefused
from omnibus.files.tenant_records import TenantRecords, new_id
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.webhooks.webhook_event import (
    PREFIX,
    EventType,
    UnknownWebhook,
    WebhookEndpoint,
    WebhookEvent,
    checked_events,
    checked_url,
    new_secret,
)
from omnibus.wire import stores, subjects

_log = get_logger(__name__)


class QueuedWebhook(msgspec.Struct, frozen=True, kw_only=True):
    """An event on its way to one endpoint."""

    tenant: str | None
    endpoint_id: str
    event: WebhookEvent


class WebhookStore:
    """Keeps endpoints, and queues events, over one connection. Every method raises BrokerUnavailable."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._bucket = connection, Bucket(connection, stores.WEBHOOKS_BUCKET)
        self._records = TenantRecords(self._bucket, PREFIX, WebhookEndpoint, _unknown)

    def now(self) -> float:
        """The time by the server's clock."""
        return self._connection.clock.now()

    async def add(self, tenant: str | None, url: str, events: Iterable[str] = ()) -> WebhookEndpoint:
        """Register an address for events of a tenant, all or some; raises InvalidRequest."""
        now = self.now()
        endpoint = WebhookEndpoint(
            id=new_id(PREFIX, now), tenant=tenant, url=checked_url(url), secret=new_secret(),
            events=checked_events(events), created=now,
        )  # fmt: skip
        await self._bucket.create(self._records.key(tenant, endpoint.id), msgspec.msgpack.encode(endpoint))
        return endpoint

    async def of_all(self) -> list[WebhookEndpoint]:
        """The endpoints of all tenants, in the order of their making; for operators."""
        values = await self._bucket.get_all(await self._bucket.keys())
        return sorted(map(self._records.decode, values.values()), key=lambda one: one.id)

    async def find(self, tenant: str | None, endpoint_id: str) -> WebhookEndpoint:
        """An endpoint of a tenant; raises UnknownWebhook."""
        return await self._records.find(tenant, endpoint_id)

    async def remove(self, id_or_url: str) -> list[WebhookEndpoint]:
        """Remove the endpoint of this id, or all of this address; raises UnknownWebhook where there is none.

        What is queued for it is dropped when its turn comes.
        """
        found = [one for one in await self.of_all() if id_or_url in (one.id, one.url)]
        if not found:
            raise _unknown(id_or_url)
        for one in found:
            await self._bucket.delete(self._records.key(one.tenant, one.id))
        return found

    async def notify(self, tenant: str | None, kind: EventType, data_id: str) -> None:
        """Queue an event for every endpoint of a tenant that wants it; idempotent: repeats have the same id.

        To be called before the message is acknowledged by which a job's runner would come again: then no end goes unannounced.
        """
        event = WebhookEvent.of(kind, data_id, self.now())
        for endpoint in await self._known(tenant):
            if endpoint.wants(kind):
                queued = QueuedWebhook(tenant=tenant, endpoint_id=endpoint.id, event=event)
                data, msg_id = msgspec.msgpack.encode(queued), f"{event.id}.{endpoint.id}"
                await self._connection.js_publish(subjects.queued_webhook(event.id), data, msg_id)

    async def _known(self, tenant: str | None) -> list[WebhookEndpoint]:
        """The endpoints of a tenant; none where a deployment or credentials of before have no store of them: jobs end all the
        same."""
        try:
            return await self._records.all(tenant)
        except BrokerRefused as error:
            if not error.not_found:
                raise
        except BrokerDenied as error:
            _log.error(LogEvent.WEBHOOK_GIVEN_UP, error=error.message)
        return []


def _unknown(endpoint_id: str) -> UnknownWebhook:
    return UnknownWebhook(f"there is no webhook {endpoint_id[:80]!r}", param="webhook")
