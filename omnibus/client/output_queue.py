"""Outputs on their way from the engine's thread to their taker, on any thread or event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")
BOUND, BOUND_BYTES = 1024, 64 << 20
"""Outputs that wait to be taken, and their bytes. Beyond either their maker waits: the ledger has them."""


class OutputQueue(Generic[T]):
    """A bounded queue, safe everywhere. A taker that is cancelled takes nothing with it.

    One item may be larger than the bound of all: then it is alone.
    """

    def __init__(self, size_of: Callable[[T], int], bound: int = BOUND, most: int = BOUND_BYTES) -> None:
        """`bound` counts items, `most` their bytes, of which an item has `size_of`."""
        self._size_of, self._bound, self._most = size_of, bound, most
        self._items: deque[T] = deque()
        self._bytes = 0
        self._lock = threading.Lock()
        self._waiting: list[Future[None]] = []
        self._closed: Exception | None = None

    async def put(self, item: T) -> None:
        """Add an item; waits while the queue is full."""
        while (room := self._add(item)) is not None:
            await self._news(room)

    def take(self, timeout: float | None) -> T | None:
        """The next item, None when there is none within `timeout` seconds (None: as long as it takes).

        Raises what the queue was closed with, once it is empty.
        """
        until = _until(timeout)
        while True:
            item, news = self._pop()
            if news is None or _left(until) == 0.0:
                return item
            with suppress(TimeoutError):
                news.result(_left(until))

    async def take_async(self, timeout: float | None) -> T | None:
        """The same on an event loop."""
        until = _until(timeout)
        while True:
            item, news = self._pop()
            if news is None or _left(until) == 0.0:
                return item
            with suppress(TimeoutError):
                async with asyncio.timeout(_left(until)):
                    await self._news(news)

    def close(self, reason: Exception) -> None:
        """Nothing is added any more; a taker that waits, or finds the queue empty, gets `reason` raised. Idempotent."""
        with self._lock:
            self._closed = self._closed or reason
            self._notify()

    async def _news(self, news: Future[None]) -> None:
        await asyncio.shield(asyncio.wrap_future(news))  # else it would be cancelled with the waiter, and not settable

    def _add(self, item: T) -> Future[None] | None:
        """None when it is in, or the queue is closed; else what tells of the next change."""
        with self._lock:
            if self._closed is not None:
                return None
            nbytes = self._size_of(item)
            if self._items and (len(self._items) >= self._bound or self._bytes + nbytes > self._most):
                return self._wait()
            self._items.append(item)
            self._bytes += nbytes
            self._notify()
            return None

    def _pop(self) -> tuple[T | None, Future[None] | None]:
        """An item and None, or None and what tells of the next change."""
        with self._lock:
            if not self._items:
                if self._closed is not None:
                    raise self._closed
                return None, self._wait()
            item = self._items.popleft()
            self._bytes -= self._size_of(item)
            self._notify()
            return item, None

    def _wait(self) -> Future[None]:
        news: Future[None] = Future()
        self._waiting.append(news)
        return news

    def _notify(self) -> None:
        waiting, self._waiting = self._waiting, []
        for news in waiting:
            news.set_result(None)


def _until(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(until: float | None) -> float | None:
    return None if until is None else max(0.0, until - time.monotonic())
