"""One connection to NATS: core publish and subscribe, requests, and what happens when it breaks.

Reconnects forever; only the first connect has a deadline. What is published while it is down is kept, up to 16 MiB, and
sent afterwards. `Connection` adds JetStream.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import nats.errors

from omnibus.broker.nats_access import without_password
from omnibus.broker.nats_client import MOST_BUFFERED, NatsClient
from omnibus.broker.replies import Answer, ReceivedMessage, Replies, Transient
from omnibus.broker.subscription import Callback, Subscription
from omnibus.errors import BrokerDenied, BrokerRefused, BrokerUnavailable, ConfigError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.metrics import Metrics
from omnibus.observability.tracing import Tracing

Hook = Callable[[], None]

_OPTIONS: dict[str, Any] = {
    "max_reconnect_attempts": -1,
    "reconnect_time_wait": 0.2,
    "connect_timeout": 2,
    "ping_interval": 5,
    "max_outstanding_pings": 2,
    "pending_size": MOST_BUFFERED,
}
CLOSE_TIMEOUT = 5.0
"""Seconds for what is buffered to leave when a connection is closed."""
_CANCELLATIONS = 20
_CLOSED_SOCKET = (ConnectionError, RuntimeError)
"""Exceptions of the loop for a socket that is closed; uvloop raises the second."""
_LOST = (nats.errors.Error, ConnectionError)
_SCHEMES = ("nats", "tls", "ws", "wss")
_PERMISSIONS = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"', re.IGNORECASE)
_REFUSED = re.compile("authorization violation|authentication", re.IGNORECASE)
_MOST_DENIED = 64
"""Subjects that are remembered because the server refused a subscription to them."""

log = get_logger(__name__)


class Link:
    """A connection to NATS. Made by `connect`."""

    def __init__(self, url: str, name: str, metrics: Metrics | None = None) -> None:
        self.url, self.name = url, name
        self.metrics = metrics if metrics is not None else Metrics()
        self.tracing = Tracing()
        """The spans of this process; a process that records any sets it before anything else is done over the connection."""
        self.generation = 0
        """How often the connection was re-established."""
        self.connected_since: float | None = None
        """`time.monotonic()` of the last (re)connect, None while disconnected."""
        self._replies = Replies()
        self.client = NatsClient(self._replies.waiting)
        self._subscriptions: set[Subscription] = set()
        self._up = asyncio.Event()
        self._closing = False
        self._last_error: Exception | None = None
        self._refusal: asyncio.Future[BrokerDenied | ConfigError] | None = None
        """While it is opened: why waiting would not help."""
        self._denied: deque[str] = deque(maxlen=_MOST_DENIED)
        self._on_disconnect: list[Hook] = []
        self._on_reconnect: list[Hook] = []

    async def open(self, *, options: dict[str, Any], deadline: float) -> None:
        """Connect; raises BrokerUnavailable, which says what to do, when that takes longer than `deadline` seconds.

        `options` are those of `Access.options`. Raises ConfigError for what is no URL of NATS and for a certificate that
        nobody known has signed, BrokerDenied for credentials that the server does not accept.
        """
        if not all(map(_is_nats_url, self.url.split(","))):
            raise ConfigError(f"{self._safe_url!r} is no NATS URL: write it as nats://host:4222, several with commas")
        connecting = asyncio.create_task(self._connect(options), name="nats-connect")
        self._refusal = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(deadline):
                await self._until_open(connecting, self._refusal)
        except (TimeoutError, OSError, nats.errors.Error) as error:
            await self.close()
            raise BrokerUnavailable(self._advice(deadline)) from error
        except BaseException:
            connecting.cancel()
            await self.close()
            raise
        self._refusal = None
        self.connected_since = time.monotonic()
        self.metrics.connected.set(1)
        self._up.set()
        log.debug(LogEvent.BROKER_CONNECTED, url=self._safe_url, client=self.name)

    @staticmethod
    async def _until_open(connecting: asyncio.Task[None], refusal: asyncio.Future[BrokerDenied | ConfigError]) -> None:
        either: set[asyncio.Future[Any]] = {connecting, refusal}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not connecting.done():
            raise refusal.result()
        await connecting

    async def _connect(self, options: dict[str, Any]) -> None:
        await self.client.connect(
            self.url.split(","),
            name=self.name,
            error_cb=self._report,
            disconnected_cb=self._disconnected,
            reconnected_cb=self._reconnected,
            closed_cb=self._closed,
            **_OPTIONS,
            **options,
        )
        self._replies.open(self.client)

    async def close(self) -> None:
        """Send what is buffered, for CLOSE_TIMEOUT at the most, and close; idempotent."""
        self._closing = True
        self.connected_since = None
        self._replies.fail("the connection was closed")
        for subscription in self._subscriptions:
            subscription.stop()
        closing = asyncio.create_task(self.client.close(), name="nats-close")
        try:
            done, _ = await asyncio.wait({closing}, timeout=CLOSE_TIMEOUT)
        finally:
            closing.cancel()  # of no effect, unless it waits for a socket whose server is gone
        await self._stop_reconnecting()
        for ended in done:
            if not isinstance(ended.exception(), _CLOSED_SOCKET):  # whose end it did not expect
                ended.result()

    async def _stop_reconnecting(self) -> None:
        """Cancel the client's attempts, several times: its `asyncio.wait_for` may swallow one, and it would try for ever."""
        trying = self.client._reconnection_task  # noqa: SLF001 it has no public name
        for _ in range(_CANCELLATIONS):
            if trying is None or trying.done():
                return
            trying.cancel()
            await asyncio.wait({trying}, timeout=0.1)

    @property
    def connected(self) -> bool:
        return self.connected_since is not None and self.client.is_connected

    @property
    def max_payload(self) -> int:
        """Largest message that the server takes, in bytes."""
        return int(self.client.max_payload)

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be sent that what can be left out should be."""
        return self.client.is_full

    def on_disconnect(self, hook: Hook) -> Hook:
        """Call `hook` when the connection breaks; returns the function that takes it off again."""
        return _add_hook(self._on_disconnect, hook)

    def on_reconnect(self, hook: Hook) -> Hook:
        """Call `hook` when the connection is back, subscriptions included; returns what takes it off again."""
        return _add_hook(self._on_reconnect, hook)

    async def wait_connected(self, timeout: float) -> None:
        """Return once connected; raises BrokerUnavailable after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._up.wait()
        except TimeoutError as error:
            raise BrokerUnavailable(self._advice(timeout)) from error

    def send(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Core publish: buffered, in order, at most once; raises BrokerUnavailable when closed or when the buffer is full."""
        try:
            self.client.publish_now(subject, data, headers, reply)
        except _LOST as error:
            raise self._translated(error, subject, len(data)) from error

    async def publish(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Like `send`, after waiting for room in the buffer."""
        await self._await_room()
        self.send(subject, data, headers=headers, reply=reply)

    def ask(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout: float = 2.0
    ) -> Answer:
        """Send a request; the future is the first answer within `timeout` seconds, or BrokerUnavailable. Not retried.

        Several may be under way before the first is awaited, and all of them must be.
        """
        if not self.connected:  # or it would be sent after the reconnect, when its retry is sent too
            raise Transient(f"not connected to NATS, cannot ask {subject}")
        try:
            return self._replies.ask(subject, data, headers, timeout)
        except _LOST as error:
            raise self._translated(error, subject, len(data)) from error

    async def request(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout: float = 2.0
    ) -> ReceivedMessage:
        """Like `ask`, after waiting for room in the buffer; returns the answer."""
        await self._await_room()
        return await self.ask(subject, data, headers=headers, timeout=timeout)

    def request_many(self, subject: str, data: bytes, *, timeout: float = 2.0) -> AsyncGenerator[ReceivedMessage, None]:
        """All answers, in order, until the caller stops iterating (`aclosing` it); raises BrokerUnavailable."""
        return self._replies.request_many(subject, data, timeout, self.send)

    async def subscribe(self, subject: str, callback: Callback, *, queue: str = "") -> Subscription:
        """Call `callback` with each message, one after the other; the server knows of it when this returns.

        A plain function is called at once, and must neither block nor take long; a coroutine function costs a task.
        """
        try:
            subscription = Subscription(self, subject, callback, queue)
        except _LOST as error:
            raise self._translated(error, subject, 0) from error
        self._subscriptions.add(subscription)
        try:
            await self.flush()
        except BaseException:
            await subscription.unsubscribe()
            raise
        if subject.lower() in self._denied:
            self._denied.remove(subject.lower())
            await subscription.unsubscribe()
            raise BrokerDenied.of("subscribe to", subject)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """A subscription has ended."""
        self._subscriptions.discard(subscription)

    def new_inbox(self) -> str:
        """A subject that nobody else uses, under this role's prefix."""
        return str(self.client.new_inbox())

    async def flush(self, timeout: float = 5.0) -> None:
        """Wait until the server has everything that was sent; raises BrokerUnavailable."""
        if self._closing:
            raise Transient("the connection was closed")
        await self.wait_connected(timeout)
        try:
            await self.client.pinged(timeout)
        except _LOST as error:
            raise Transient(f"NATS did not answer a ping within {timeout:g} s") from error

    async def _await_room(self) -> None:
        if not self.client.is_full:
            return
        try:
            await self.client.room()
        except _LOST as error:
            raise Transient(f"the connection to NATS broke: {error}") from error

    async def _report(self, error: Exception) -> None:
        self._last_error = error
        denied = _PERMISSIONS.search(str(error))
        if denied is not None:
            self._deny(denied[1], denied[2])
        elif self._refusal is not None and (refusal := self._hopeless(error)) is not None:
            if not self._refusal.done():
                self._refusal.set_result(refusal)
        elif isinstance(error, OSError | nats.errors.UnexpectedEOF | TimeoutError):
            log.debug(LogEvent.BROKER_ERROR, client=self.name, error=repr(error))  # one a reconnect attempt
        else:
            self.metrics.errors.labels(where="broker").inc()
            log.warning(LogEvent.BROKER_ERROR, client=self.name, error=repr(error))

    def _deny(self, what: str, subject: str) -> None:
        """The server refused a message or a subscription: tell, and fail at once the call that waits for its answer.

        `subject` is in lower case, whatever it was: the client library passes it on so.
        """
        self.metrics.permission_denied.inc()
        log.error(LogEvent.BROKER_PERMISSION_DENIED, client=self.name, what=what, subject=subject)
        if what == "publish":
            self._replies.deny(subject)
        else:
            self._denied.append(subject)

    def _hopeless(self, error: Exception) -> BrokerDenied | ConfigError | None:
        """The error, when no second attempt to connect can succeed; else None."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return ConfigError(
                f"no known authority has signed the certificate of NATS at {self._safe_url} for that name "
                f"({error.verify_message}): name its CA in OMNIBUS_NATS_TLS_CA"
            )
        if isinstance(error, nats.errors.AuthorizationError) or _REFUSED.search(str(error)):
            return BrokerDenied(
                f"NATS at {self._safe_url} does not accept these credentials: name a file or a folder of them in "
                "OMNIBUS_NATS_CREDENTIALS (those of an embedded server are nats.credentials in its state directory)"
            )
        return None

    async def _disconnected(self) -> None:
        self.connected_since = None
        self.metrics.connected.set(0)
        self._up.clear()
        self._replies.fail("the connection to NATS broke")
        self.client.broken()
        if not self._closing:
            log.warning(LogEvent.BROKER_DISCONNECTED, client=self.name, url=self._safe_url)
        for hook in tuple(self._on_disconnect):
            hook()

    async def _reconnected(self) -> None:
        self.generation += 1
        self.connected_since = time.monotonic()
        self.metrics.reconnects.inc()
        self.metrics.connected.set(1)
        self._up.set()
        log.info(LogEvent.BROKER_RECONNECTED, client=self.name, generation=self.generation)
        for hook in tuple(self._on_reconnect):
            hook()

    async def _closed(self) -> None:
        if not self._closing:  # the server refused this client for good, such as credentials that were revoked
            log.error(LogEvent.BROKER_CLOSED, client=self.name, error=repr(self._last_error))

    def _translated(self, error: Exception, subject: str, size: int) -> BrokerUnavailable | BrokerRefused:
        if isinstance(error, nats.errors.MaxPayloadError):
            return BrokerRefused(f"a message of {size} bytes on {subject} exceeds the server's {self.max_payload}")
        if isinstance(error, nats.errors.BadSubjectError | nats.errors.BadHeaderError):
            return BrokerRefused(f"malformed subject or header: {subject!r}")
        if isinstance(error, ConnectionError):
            return Transient(f"the connection to NATS broke: {error}")
        return Transient(f"cannot publish on {subject}: {error}")

    def _advice(self, seconds: float) -> str:
        error = self._last_error
        cause = f" ({str(error) or type(error).__name__})" if error is not None else ""
        return (
            f"cannot reach NATS at {self._safe_url} within {seconds:g} s{cause}: start one with `omnibus serve`, "
            "or name a running server in OMNIBUS_NATS_URL"
        )

    @property
    def _safe_url(self) -> str:
        """The URL without credentials, for messages and logs."""
        return without_password(self.url)


def _is_nats_url(text: str) -> bool:
    try:
        split = urlsplit(text if "://" in text else f"nats://{text}")
        port = split.port
    except ValueError:
        return False
    return split.scheme in _SCHEMES and split.hostname is not None and port != 0


def _add_hook(hooks: list[Hook], hook: Hook) -> Hook:
    hooks.append(hook)
    return lambda: hooks.remove(hook) if hook in hooks else None
