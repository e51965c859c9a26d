"""A connection with JetStream: publishing with an acknowledgement, and the API of streams and consumers.

Both retry what an outage or an election causes, for about ten seconds, with the same message: a retried publish is
deduplicated by its Msg-Id.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any, TypeVar

import msgspec
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from omnibus.broker.clock import ASK, ASK_TIMEOUT, ServerClock
from omnibus.broker.link import Link
from omnibus.broker.nats_access import NO_ACCESS, Access
from omnibus.broker.replies import Answer, ReceivedMessage, Transient, status_of
from omnibus.broker.subscription import Callback, Subscription
from omnibus.errors import BrokerRefused, BrokerUnavailable, RevisionConflict
from omnibus.observability.metrics import Metrics

__all__ = ["Callback", "Connection", "PubAck", "ReceivedMessage", "Subscription", "connect", "status_of"]

WRONG_LAST_SEQUENCE = (10071, 10164)
"""Server codes of a compare-and-set that lost."""
STREAM_FULL = 10077
"""Server code of a stream that refuses new messages at its bound."""

_ATTEMPT_TIMEOUT = 2.0
_RETRY_FOR = 10.0
OUT_OF_RESOURCES = (STREAM_FULL, 10023, 10028, 10047)  # sent with the code of an outage, though waiting does not help
_NO_SUITABLE_PEERS = 10005
"""Server code while a cluster forms or a node is away. Sent with the code of a bad request, though waiting helps."""
_PASSING = (10007, 10009, 10158)
"""Server codes of what passes, sent with that of a fault: of a node that does not lead yet, or not any more; and of a message
that was sent again while the cluster still stores it, so that what becomes of it is not known."""

T = TypeVar("T")


class ServerError(msgspec.Struct, frozen=True):
    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct, frozen=True):
    """The server's acknowledgement that a message is stored, or its refusal."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    """The message was there already: its Msg-Id is known."""
    error: ServerError | None = None


_decode_ack = msgspec.json.Decoder(PubAck).decode


class Connection(Link):
    """A connection to NATS with JetStream. Made by `connect`."""

    def __init__(self, url: str, name: str, metrics: Metrics | None = None) -> None:
        super().__init__(url, name, metrics)
        self.clock = ServerClock(lambda: self.request(ASK, timeout=ASK_TIMEOUT))
        """The clock that deadlines are compared with."""
        self.on_reconnect(self.clock.hurry)

    def js_publish(
        self,
        subject: str,
        data: bytes = b"",
        msg_id: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        deadline: float = _RETRY_FOR,
    ) -> Publishing:
        """Publish, at once; await the acknowledgement, with retries for `deadline` seconds; at least once.

        With a `msg_id`, retries are deduplicated. Raises BrokerUnavailable, RevisionConflict when an expected sequence is
        not the last one, and BrokerRefused when the stream refuses (`err_code` STREAM_FULL at its bound).
        """
        sent = dict(headers) if headers is not None else {}
        if msg_id is not None:
            sent["Nats-Msg-Id"] = msg_id
        return Publishing(self, deadline, subject=subject, data=data, headers=sent)

    async def api(
        self, operation: str, body: Mapping[str, Any] | None = None, *, deadline: float = _RETRY_FOR
    ) -> dict[str, Any]:
        """Call the JetStream API, such as `STREAM.INFO.<stream>`; raises BrokerUnavailable and BrokerRefused."""
        data = msgspec.json.encode(body) if body is not None else b""
        return await self.retried(lambda: self._call_once(operation, data), deadline)

    async def find(self, operation: str, body: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """Like `api`; None when the server knows no such stream, consumer or message."""
        try:
            return await self.api(operation, body)
        except BrokerRefused as refused:
            if refused.not_found:
                return None
            raise

    async def stored_subjects(self, stream: str, wanted: str) -> dict[str, int]:
        """Messages that a stream holds, by subject, of those that the filter `wanted` takes.

        The answer grows with the number of subjects. Raises BrokerUnavailable and BrokerRefused.
        """
        subjects: dict[str, int] = {}
        while True:
            info = await self.api(f"STREAM.INFO.{stream}", {"subjects_filter": wanted, "offset": len(subjects)})
            page = info["state"].get("subjects") or {}
            subjects |= page
            if not page or len(subjects) >= info.get("total", 0):
                return subjects

    async def retried_request(
        self, subject: str, data: bytes = b"", *, deadline: float = _RETRY_FOR
    ) -> ReceivedMessage:
        """The first answer to a request that may safely be sent again; raises BrokerUnavailable."""
        return await self.retried(lambda: self.request(subject, data, timeout=_ATTEMPT_TIMEOUT), deadline)

    async def _call_once(self, operation: str, data: bytes) -> dict[str, Any]:
        message = await self.request(f"$JS.API.{operation}", data, timeout=_ATTEMPT_TIMEOUT)
        answer: dict[str, Any] = msgspec.json.decode(message.data)
        if "error" in answer:
            raise _refusal(msgspec.convert(answer["error"], ServerError), operation)
        return answer

    async def retried(self, attempt: Callable[[], Awaitable[T]], deadline: float = _RETRY_FOR) -> T:
        """Try `attempt` again for `deadline` seconds while it fails as in an outage; raises its last failure."""
        started = time.monotonic()
        try:
            return await attempt()  # the retrying machinery costs more than a publish
        except Transient:
            pass
        left = deadline - (time.monotonic() - started)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Transient),
            stop=stop_after_delay(left),
            wait=wait_random_exponential(multiplier=0.05, max=1.0),
            reraise=True,
        )
        async for trial in retrying:
            with trial:
                await self.wait_connected(max(0.1, deadline - (time.monotonic() - started)))
                return await attempt()
        raise BrokerUnavailable(f"NATS did not answer within {deadline:g} s")  # not reached: the last failure is raised


class Publishing:
    """A message on its way into a stream, to be awaited for its acknowledgement, once. Made by `Connection.js_publish`."""

    __slots__ = ("_answer", "_connection", "_deadline", "_message")

    def __init__(self, connection: Connection, deadline: float, **message: Any) -> None:
        self._connection, self._deadline, self._message = connection, deadline, message
        self._answer: Answer | None = None
        """The answer to the first attempt, while it is not looked at; None when the message could not leave yet."""
        if not connection.is_full:
            with suppress(BrokerUnavailable):
                self._answer = connection.ask(**message, timeout=_ATTEMPT_TIMEOUT)

    def __await__(self) -> Generator[Any, None, PubAck]:
        return self._connection.retried(self._attempt, self._deadline).__await__()

    def drop(self) -> None:
        """Nobody waits for it any more."""
        if self._answer is not None and not self._answer.cancel() and not self._answer.cancelled():
            self._answer.exception()  # or asyncio would log it

    async def _attempt(self) -> PubAck:
        answer, self._answer = self._answer, None
        again = self._connection.request
        message = await (answer if answer is not None else again(**self._message, timeout=_ATTEMPT_TIMEOUT))
        ack = _decode_ack(message.data)
        if ack.error is not None:
            raise _refusal(ack.error, self._message["subject"])
        return ack


@asynccontextmanager
async def connect(
    url: str,
    *,
    name: str,
    role: str = "client",
    deadline: float = 5.0,
    access: Access = NO_ACCESS,
    stage: str | None = None,
    metrics: Metrics | None = None,
    clock: bool = True,
) -> AsyncIterator[Connection]:
    """Connect to a server or a cluster (`url` may name several, comma-separated) for as long as the context lasts.

    `name` is what disconnect events carry; `role` and `stage` choose the credentials where `access` has several.
    `clock` measures the server's time; not for a user who may publish nothing. Raises BrokerUnavailable when no server
    answers within `deadline` seconds, ConfigError and BrokerDenied for credentials that cannot be used.
    """
    connection = Connection(url, name, metrics)
    await connection.open(options=access.options(role, stage), deadline=deadline)
    try:
        async with connection.clock.kept() if clock else nullcontext():
            yield connection
    finally:
        await connection.close()


def _refusal(error: ServerError, what: str) -> Exception:
    if error.err_code in WRONG_LAST_SEQUENCE:
        return RevisionConflict(f"{what}: {error.description}")
    message = f"{what}: {error.description} ({error.err_code})"
    if error.err_code == _NO_SUITABLE_PEERS:
        return Transient(f"{message}: fewer nodes of the cluster are up than copies are asked for")
    if error.err_code in _PASSING or (error.code == 503 and error.err_code not in OUT_OF_RESOURCES):
        return Transient(message)
    return BrokerRefused(message, err_code=error.err_code, status=error.code)
