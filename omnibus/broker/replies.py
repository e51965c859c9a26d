"""Requests over one inbox, whose answers are matched by their last token.

Own, instead of nats-py's: a request under way fails at once when the connection breaks, so that its retry does not wait out a
timeout, and it costs one future: no subscription, no task and no timer of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from itertools import count
from typing import Any, Protocol

from omnibus.errors import BrokerDenied, BrokerUnavailable

NO_RESPONDERS = "503"


class ReceivedMessage(Protocol):
    """A message that a subscription receives."""

    @property
    def subject(self) -> str: ...

    @property
    def reply(self) -> str: ...

    @property
    def data(self) -> bytes: ...

    @property
    def headers(self) -> Mapping[str, str] | None: ...


class Transient(BrokerUnavailable):
    """The broker did not answer this time; the same request may be sent again."""


Answer = asyncio.Future[ReceivedMessage]


class Replies:
    """Requests that wait for their answer."""

    def __init__(self) -> None:
        self.waiting: dict[str, tuple[str, float, float, Answer]] = {}
        """By token: subject, seconds that it may take, time of the loop when they are over, and the future answer."""
        self._streams: dict[str, tuple[str, asyncio.Queue[ReceivedMessage | Exception]]] = {}
        self._client: Any = None
        self._tokens = count()
        self._prefix = ""
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_at = 0.0

    def open(self, client: Any) -> None:
        """Listen on an inbox of this client's; once, before the first request."""
        self._client, self._prefix = client, f"{client.new_inbox()}."
        client.listen(f"{self._prefix}*", "", self._receive)

    def ask(self, subject: str, data: bytes, headers: Mapping[str, str] | None, timeout: float) -> Answer:
        """Send a request; the future is its first answer.

        It raises Transient on a timeout, without responders, and when the connection breaks; BrokerDenied.
        """
        loop = asyncio.get_running_loop()
        token = str(next(self._tokens))
        self._client.publish_now(subject, data, headers, self._prefix + token)
        answer: Answer = loop.create_future()
        until = loop.time() + timeout
        self.waiting[token] = subject, timeout, until, answer
        if self._sweep is None or until < self._sweep_at:
            self._sweep_next(loop, until)
        return answer

    async def request_many(
        self, subject: str, data: bytes, timeout: float, send: Callable[..., None]
    ) -> AsyncGenerator[ReceivedMessage, None]:
        """All answers, in order, until the caller stops; `timeout` bounds the wait for each. Raises Transient, and as `send`.

        How many may wait unread is bounded by what the request asks for.
        """
        token = str(next(self._tokens))
        answers: asyncio.Queue[ReceivedMessage | Exception] = asyncio.Queue()
        self._streams[token] = subject, answers
        try:
            send(subject, data, reply=self._prefix + token)
            while True:
                async with asyncio.timeout(timeout):
                    answer = await answers.get()
                if isinstance(answer, Exception):
                    raise answer
                yield answer
        except TimeoutError as error:
            raise Transient(f"no further answer on {subject} within {timeout:g} s") from error
        finally:
            del self._streams[token]

    def fail(self, reason: str) -> None:
        """Fail every request under way: its answer cannot arrive any more."""
        waiting = tuple(self.waiting.values())
        self.waiting.clear()
        for *_, answer in waiting:
            _fail(answer, Transient(reason))
        for _, answers in self._streams.values():
            answers.put_nowait(Transient(reason))

    def deny(self, subject: str) -> None:
        """Fail every request that is under way on a subject, in lower case: the server does not allow it."""
        for asked, _, _, answer in self.waiting.values():
            if asked.lower() == subject:
                _fail(answer, BrokerDenied.of("publish", asked))
        for asked, answers in self._streams.values():
            if asked.lower() == subject:
                answers.put_nowait(BrokerDenied.of("publish", asked))

    def _receive(self, message: ReceivedMessage) -> None:
        token = message.subject[len(self._prefix) :]
        if (waiting := self.waiting.pop(token, None)) is not None:
            subject, _, _, answer = waiting
            if not message.data and status_of(message) == NO_RESPONDERS:
                _fail(answer, _nobody(subject))
            elif not answer.done():
                answer.set_result(message)
        elif (stream := self._streams.get(token)) is not None:
            subject, answers = stream
            answers.put_nowait(_nobody(subject) if status_of(message) == NO_RESPONDERS else message)

    def _sweep_next(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        """One timer serves all requests: the next moment at which one of them may be over."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep, self._sweep_at = loop.call_at(at, self._sweep_over, loop), at

    def _sweep_over(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep = None
        now = loop.time()
        for token in [token for token, (_, _, until, _) in self.waiting.items() if until <= now]:
            subject, timeout, _, answer = self.waiting.pop(token)
            _fail(answer, Transient(f"no answer on {subject} within {timeout:g} s"))
        if self.waiting:
            self._sweep_next(loop, min(until for _, _, until, _ in self.waiting.values()))


def status_of(message: ReceivedMessage) -> str | None:
    """The server's status (`404`, `408`, `503`, …) when the message is one, None for data."""
    if message.data or message.headers is None:
        return None
    return message.headers.get("Status")


def _nobody(subject: str) -> Transient:
    return Transient(f"nobody answers on {subject}")


def _fail(answer: Answer, error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
