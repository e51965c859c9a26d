"""Payloads in the memory of another host, by the broker: a process of that host stores them, and the reader reads the store.

The way of readers that no peer serves: none listens where they could reach it, or it has died. Any process of the host answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec

from omnibus.broker.connection import Connection, ReceivedMessage, Subscription
from omnibus.broker.replies import Transient
from omnibus.errors import BrokerUnavailable, OmnibusError, PayloadLost
from omnibus.observability.task_root import task_root
from omnibus.wire import codec, subjects
from omnibus.wire.names import check_name
from omnibus.wire.payload import MemorySlot, ObjectKey, Payload

_TIMEOUT = 30.0
"""Seconds that the other host may take to store a payload."""
_RESTARTING = 10.0
"""Seconds in which a process of the other host may be back that has just died."""
_AT_ONCE = 4
"""Payloads that one process stores for others at the same time."""
_MOST_WAITING = 256
"""Questions of others that wait for their turn; to what is asked beyond that the answer is to ask again."""
_BUSY = "Omni-Busy"
"""Header of that answer. It is empty: for a reader of a former version the payload is lost, and its request runs again."""


class Fetch(msgspec.Struct, frozen=True, kw_only=True, tag="fetch"):
    """A reader elsewhere wants a payload of this host in the object store; the answer is its key, or nothing when it is lost."""

    rid: str
    payload: Payload


class Fetching:
    """Asks processes of other hosts, and answers theirs from `store`: it puts a payload of this host into the object store."""

    def __init__(
        self, connection: Connection, pipeline: str, store: Callable[[Payload, str], Awaitable[ObjectKey]]
    ) -> None:
        self._connection, self._pipeline, self._store = connection, pipeline, store
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._answers: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None

    async def listen(self, host: str) -> None:
        """Answer questions to this host from now on; raises BrokerUnavailable."""
        subject = subjects.fetch(self._pipeline, host)
        self._subscription = await self._connection.subscribe(subject, self._on_question, queue="host")

    async def close(self) -> None:
        """Answer no more."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        for answer in self._answers:
            answer.cancel()

    async def fetched(self, slot: MemorySlot, payload: Payload, rid: str) -> ObjectKey:
        """Have a payload of another host stored; raises PayloadLost when that host does not have it, or is gone."""
        question = codec.encode(Fetch(rid=rid, payload=payload))
        subject = subjects.fetch(self._pipeline, slot.host)
        try:
            answer = await self._connection.retried(lambda: self._asked(subject, question), _RESTARTING)
        except BrokerUnavailable as error:
            if not self._connection.connected:
                raise
            raise PayloadLost(f"no process on host {slot.host} has its payload: {error.message}") from error
        if not answer.data:
            raise PayloadLost(f"host {slot.host} has lost a payload")
        return ObjectKey(answer.data.decode())

    async def _asked(self, subject: str, question: bytes) -> ReceivedMessage:
        answer = await self._connection.request(subject, question, timeout=_TIMEOUT)
        if _BUSY in (answer.headers or ()):
            raise Transient(f"too many payloads are asked for on {subject}")
        return answer

    def _on_question(self, message: ReceivedMessage) -> None:
        if message.reply and len(self._answers) >= _MOST_WAITING:
            self._connection.send(message.reply, headers={_BUSY: "1"})
        elif message.reply:
            answer = asyncio.create_task(self._answer(message), name="payload-fetch")
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)

    async def _answer(self, message: ReceivedMessage) -> None:
        async with self._turns:
            key = ""  # also for what nobody foresaw: the reader would wait in vain
            with task_root("payload fetch", self._connection.metrics), suppress(OmnibusError):
                question: Fetch = codec.decode(message.data, Fetch)
                rid = check_name(question.rid, "request id")
                key = (await self._store(question.payload, rid)).key
            await self._connection.publish(message.reply, key.encode())
