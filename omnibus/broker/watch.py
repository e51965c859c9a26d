"""One watch of a key-value bucket that heals itself.

The server pushes the last value of every key and then every change, through a consumer of its own. When the connection
breaks, when a change is missing or when the server falls silent, the watch starts over and compares: new values are
reported as changes, missing keys as deletions. Changes of one key may be conflated: state, not an event log.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Self

from omnibus.broker.bucket import BucketEntry, value_of
from omnibus.broker.connection import Connection, ReceivedMessage, Subscription, status_of
from omnibus.broker.delivery import Delivery
from omnibus.errors import BrokerUnavailable
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.task_root import task_root

HEARTBEAT = 2.0
"""Seconds of silence after which the server sends a sign of life."""

_SECOND = 10**9
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 5.0
_CLOSE_DEADLINE = 2.0

OnChange = Callable[[str, bytes | None, int], None]
"""Called with (key, value, revision); the value is None when the key was deleted or expired."""

log = get_logger(__name__)


class Watch:
    """The state of a bucket, kept up to date; an async context manager.

    `on_change` is called on the event loop for every change, in order a key, and must not block. `keys` is a filter in
    NATS' syntax. `snapshot` is what is known now; `synced` tells whether it is complete.

    A deletion may be an expiry that the server only now got round to: after an outage, all at once. A caller that concludes
    from absence that a process died counts connected time only (`Connection.connected_since`).
    """

    def __init__(
        self, connection: Connection, bucket: str, on_change: OnChange | None = None, *, keys: str = ">"
    ) -> None:
        self._connection, self._bucket = connection, bucket
        self._on_change = on_change
        self._prefix = f"$KV.{bucket}."
        self._filter = self._prefix + keys
        self._entries: dict[str, BucketEntry] = {}
        self._stale: set[str] = set()  # keys known before a resync that it has not found yet
        self._synced = asyncio.Event()
        self._restart = asyncio.Event()
        self._pause = _FIRST_PAUSE
        self._next_sequence = 0
        self._received_at = 0.0
        self._subscription: Subscription | None = None
        self._task: asyncio.Task[None] | None = None
        self._unhook: list[Callable[[], None]] = []

    async def __aenter__(self) -> Self:
        """Returns once the snapshot is complete; raises BrokerUnavailable."""
        self._unhook = [
            self._connection.on_disconnect(self._start_over),
            self._connection.on_reconnect(self._start_over),
        ]
        self._restart.set()
        self._task = asyncio.create_task(self._keep_up(), name=f"watch {self._bucket}")
        try:
            await self.wait_synced()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    @property
    def snapshot(self) -> Mapping[str, BucketEntry]:
        """Entries by key; a live view."""
        return MappingProxyType(self._entries)

    @property
    def synced(self) -> bool:
        """Whether the snapshot was complete since the last (re)connect."""
        return self._synced.is_set()

    async def wait_synced(self, timeout: float = 10.0) -> None:
        """Return once the snapshot is complete; raises BrokerUnavailable after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._synced.wait()
        except TimeoutError as error:
            raise BrokerUnavailable(f"bucket {self._bucket} could not be read within {timeout:g} s") from error

    async def _keep_up(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT):
                    await self._restart.wait()
            if not self._connection.connected:
                self._restart.clear()
                continue  # its return starts over
            if not self._restart.is_set() and time.monotonic() - self._received_at < 2.5 * HEARTBEAT:
                continue
            self._restart.clear()
            await self._resync()

    async def _resync(self) -> None:
        with task_root("watch", self._connection.metrics, bucket=self._bucket):
            await self._unsubscribe()
            await self._subscribe()
            self._pause = _FIRST_PAUSE
            return
        asyncio.get_running_loop().call_later(self._pause, self._restart.set)
        self._pause = min(2 * self._pause, _LAST_PAUSE)

    async def _subscribe(self) -> None:
        inbox = self._connection.new_inbox()
        name = f"watch-{secrets.token_hex(8)}"
        stream = f"KV_{self._bucket}"
        self._synced.clear()
        self._stale = set(self._entries)
        self._next_sequence = 1
        self._received_at = time.monotonic()
        self._subscription = await self._connection.subscribe(inbox, self._receive)
        config = {
            "name": name,
            "deliver_subject": inbox,
            "deliver_policy": "last_per_subject",
            "filter_subject": self._filter,
            "ack_policy": "none",
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
            "idle_heartbeat": int(HEARTBEAT * _SECOND),
            "inactive_threshold": int(5 * HEARTBEAT * _SECOND),
        }
        body = {"stream_name": stream, "config": config}
        created = await self._connection.api(f"CONSUMER.CREATE.{stream}.{name}.{self._filter}", body, deadline=5.0)
        if not created.get("num_pending") and not created["delivered"]["consumer_seq"]:
            self._complete()  # an empty bucket sends nothing

    def _receive(self, message: ReceivedMessage) -> None:
        self._received_at = time.monotonic()
        if not message.reply.startswith("$JS.ACK."):
            self._on_idle_heartbeat(message)
            return
        delivery = Delivery(self._connection, message)
        if delivery.consumer_seq != self._next_sequence:
            self._start_over()
            return
        self._next_sequence += 1
        self._apply(delivery.subject.removeprefix(self._prefix), value_of(message), delivery.stream_seq)
        if delivery.pending == 0 and not self.synced:
            self._complete()

    def _on_idle_heartbeat(self, message: ReceivedMessage) -> None:
        """Heartbeats name the last sequence sent: another than ours means that something is missing."""
        last = (message.headers or {}).get("Nats-Last-Consumer")
        if status_of(message) == "100" and last is not None and int(last) >= self._next_sequence:
            self._start_over()

    def _apply(self, key: str, value: bytes | None, revision: int) -> None:
        self._stale.discard(key)
        known = self._entries.get(key)
        if known is not None and known.revision == revision:
            return  # reported already: this is a resync
        if value is None:
            if self._entries.pop(key, None) is None:
                return
        else:
            self._entries[key] = BucketEntry(key, value, revision)
        self._notify(key, value, revision)

    def _complete(self) -> None:
        for key in sorted(self._stale):
            gone = self._entries.pop(key)
            self._notify(key, None, gone.revision)
        self._stale.clear()
        self._synced.set()
        log.debug(LogEvent.WATCH_RESYNCED, bucket=self._bucket, keys=len(self._entries))

    def _notify(self, key: str, value: bytes | None, revision: int) -> None:
        if self._on_change is not None:
            self._on_change(key, value, revision)

    def _start_over(self) -> None:
        self._synced.clear()
        self._restart.set()

    async def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()

    async def _close(self) -> None:
        for unhook in self._unhook:
            unhook()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        with suppress(Exception):  # a connection that is closed already has no subscriptions
            async with asyncio.timeout(_CLOSE_DEADLINE):
                await self._unsubscribe()
