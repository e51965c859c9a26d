"""Waiting for what must become true, instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(predicate: Callable[[], T | Awaitable[T]], timeout: float = 5.0, *, what: str = "") -> T:
    """The first truthy value of `predicate`, sync or async; fails the test after `timeout` seconds."""
    until = time.monotonic() + timeout
    while True:
        value = predicate()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value  # type: ignore[return-value]
        if time.monotonic() > until:
            raise AssertionError(f"not within {timeout:g} s: {what or inspect.getsource(predicate).strip()}")
        await asyncio.sleep(0.005)
