"""Threads of an engine: a call has ended when its thread is free, whether or not somebody still waits for its result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from omnibus.errors import EngineError

T = TypeVar("T")


class EngineThreads:
    """A pool of threads for calls that block."""

    def __init__(self, name: str, count: int = 1) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, call: Callable[..., Any], *args: Any) -> Any:
        """The value of a call, made in a thread; raises what it raises, and EngineError for what is no Exception.

        When this is cancelled, a call that has not begun never does. One that has begun cannot be interrupted: the
        cancellation then takes effect when its thread is free; a second one takes effect at once.
        """
        work = self._pool.submit(_contained, call, args)
        ended = asyncio.wrap_future(work)
        ended.add_done_callback(_retrieved)
        try:
            await asyncio.wait({ended})
        except asyncio.CancelledError:
            if not work.cancel():
                await asyncio.wait({ended})
            raise
        return ended.result()

    def close(self) -> None:
        """Accept no more calls, and drop those that have not begun; does not wait for those that have."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def within(timeout: float, work: Coroutine[Any, Any, T], name: str) -> T:
    """The result of some work, or TimeoutError after so many seconds, also for work that a cancellation does not end."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_retrieved)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout)
    finally:
        task.cancel()
    if not done:
        raise TimeoutError
    return task.result()


def _contained(call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Only exceptions that a future can pass on leave the thread: others would end its waiter, or never reach it."""
    try:
        return call(*args)
    except StopIteration as error:
        raise RuntimeError("the stage's code raised StopIteration") from error
    except Exception:
        raise
    except BaseException as error:
        raise EngineError(f"the stage's code raised {type(error).__name__}") from error


def _retrieved(ended: asyncio.Future[Any]) -> None:
    """Nobody may be left to look at the exception."""
    if not ended.cancelled():
        ended.exception()
