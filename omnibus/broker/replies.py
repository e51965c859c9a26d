"""Requests over one inbox, whose answers are matched by their last token.

Own, instead of nats-py's, for two reasons: a request under way fails at once when the connection breaks, so that its
retry does not wait out a timeout; and each costs less.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial
from itertools import count
from typing import Any, Protocol, TypeVar

from omnibus.errors import BrokerDenied, BrokerUnavailable

CLOSED_SOCKET = (ConnectionError, RuntimeError)
"""Exceptions of the loop for a socket that is closed; uvloop raises the second."""
T = TypeVar("T")


class ReceivedMessage(Protocol):
    """A message that a subscription receives."""

    subject: str
    reply: str
    data: bytes
    headers: Mapping[str, str] | None


class Transient(BrokerUnavailable):
    """The broker did not answer this time; the same request may be sent again."""


_Give = Callable[["ReceivedMessage | Exception"], None]


class Replies:
    """Requests that wait for their answer."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._tokens = count()
        self._waiting: dict[str, tuple[str, _Give]] = {}  # by token: subject, and what takes the answer
        self._prefix = ""

    async def open(self) -> None:
        """Subscribe to the inbox; once, before the first request."""
        self._prefix = f"{self._client.new_inbox()}."
        await self._client.subscribe(f"{self._prefix}*", cb=self._receive, pending_bytes_limit=0)

    async def request(
        self, subject: str, data: bytes, headers: dict[str, str] | None, timeout: float
    ) -> ReceivedMessage:
        """The first answer; raises Transient on a timeout, without responders, and when the connection breaks."""
        loop = asyncio.get_running_loop()
        token = str(next(self._tokens))
        answer: asyncio.Future[ReceivedMessage] = loop.create_future()
        self._waiting[token] = subject, partial(_settle, answer)
        timer = loop.call_later(timeout, _time_out, answer, subject, timeout)
        try:
            sent = self._client.publish(subject, data, reply=self._prefix + token, headers=headers)
            await seen_through(sent)
            message = await answer
        finally:
            timer.cancel()
            del self._waiting[token]
        return _answered(message, subject)

    async def request_many(self, subject: str, data: bytes, timeout: float) -> AsyncGenerator[ReceivedMessage, None]:
        """All answers, in order, until the caller stops; `timeout` bounds the wait for each. Raises Transient.

        How many may wait unread is bounded by what the request asks for.
        """
        token = str(next(self._tokens))
        answers: asyncio.Queue[ReceivedMessage | Exception] = asyncio.Queue()
        self._waiting[token] = subject, answers.put_nowait
        try:
            await seen_through(self._client.publish(subject, data, reply=self._prefix + token))
            while True:
                async with asyncio.timeout(timeout):
                    answer = await answers.get()
                if isinstance(answer, Exception):
                    raise answer
                yield _answered(answer, subject)
        except TimeoutError as error:
            raise Transient(f"no further answer on {subject} within {timeout:g} s") from error
        finally:
            del self._waiting[token]

    def fail(self, reason: str) -> None:
        """Fail every request under way: its answer cannot arrive any more."""
        for _, give in self._waiting.values():
            give(Transient(reason))

    def deny(self, subject: str) -> None:
        """Fail every request that is under way on a subject: the server does not allow it."""
        for asked, give in self._waiting.values():
            if asked.lower() == subject.lower():
                give(BrokerDenied.of("publish", asked))

    async def _receive(self, message: ReceivedMessage) -> None:
        waiting = self._waiting.get(message.subject[len(self._prefix) :])
        if waiting is not None:
            waiting[1](message)


async def seen_through(work: Awaitable[T]) -> T:
    """Await work of the client, with two of its faults mended.

    It may swallow a cancellation, and the canceller would wait for ever: its `asyncio.wait_for` does, before Python 3.12,
    when the answer comes in the same turn of the loop, and its `publish` while it waits for room in a full buffer. And it does
    not expect the exceptions of a socket that is closed, as when the server was killed: raises Transient then.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        given = await work
    except CLOSED_SOCKET as error:
        raise Transient(f"the connection to NATS broke: {error}") from error
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    return given


def status_of(message: ReceivedMessage) -> str | None:
    """The server's status (`404`, `408`, `503`, …) when the message is one, None for data."""
    if message.data or message.headers is None:
        return None
    return message.headers.get("Status")


def _answered(message: ReceivedMessage, subject: str) -> ReceivedMessage:
    if status_of(message) == "503":
        raise Transient(f"nobody answers on {subject}")
    return message


def _time_out(answer: asyncio.Future[ReceivedMessage], subject: str, timeout: float) -> None:
    _settle(answer, Transient(f"no answer on {subject} within {timeout:g} s"))


def _settle(answer: asyncio.Future[ReceivedMessage], found: ReceivedMessage | Exception) -> None:
    if answer.done():
        return
    if isinstance(found, Exception):
        answer.set_exception(found)
    else:
        answer.set_result(found)
