"""Threads of an engine, for code that may block: a call has ended when its thread is free, whether or not anybody still waits."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, TypeVar

import uvloop

from omnibus.errors import EngineDead, EngineError

T = TypeVar("T")
AHEAD = 64
"""Values that a stage's generator may be ahead of who takes them."""
_END = object()
_CLOSED = "the engine is closed"


class EngineThreads:
    """A pool of threads for calls that block."""

    def __init__(self, name: str, count: int = 1) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, call: Callable[..., Any], *args: Any) -> Any:
        """The value of a call, made in a thread; raises what it raises, and EngineError for what is no Exception.

        When this is cancelled, a call that has not begun never does. One that has begun cannot be interrupted: the
        cancellation then takes effect when its thread is free; a second one takes effect at once. Raises EngineDead
        after `close`.
        """
        try:
            work = self._pool.submit(call, *args)
        except RuntimeError as error:  # it accepts no more
            raise EngineDead(_CLOSED) from error
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Any] = loop.create_future()

        def ended(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(
                    outcome.cancel if work.cancelled() else partial(_settle, outcome, work.result)
                )

        work.add_done_callback(ended)
        return await _outlasted(outcome, work.cancel)

    def close(self) -> None:
        """Accept no more calls, and drop those that have not begun; does not wait for those that have."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Crossing:
    """The way into a loop from other threads: calls that wait there are made in one turn, and woken for once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: deque[Callable[[], object]] = deque()
        self._is_woken = False

    def soon(self, call: Callable[[], object]) -> None:
        """Make a call on the loop, unless that has ended."""
        self._calls.append(call)
        # Invariant: looked at after the append, and reset before the first call is taken: no call is left without a wake-up.
        if not self._is_woken:
            self._is_woken = True
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._make_calls)

    def _make_calls(self) -> None:
        self._is_woken = False
        for _ in range(len(self._calls)):
            self._calls.popleft()()


class EngineLoop:
    """An event loop in a thread of its own: async code that blocks it holds up its own kind, and not the replica.

    The thread begins with the first work.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._there: _Crossing | None = None
        self._here: _Crossing | None = None
        self._closed = self._ended = False

    async def run(self, work: Coroutine[Any, Any, T], *, outlast: bool = True) -> T:
        """The value of some work; raises what it raises, and EngineError for what is no Exception.

        When this is cancelled, so is the work. The cancellation takes effect when that has ended, or at once without
        `outlast`; a second one always at once. Raises EngineDead after `close`.
        """
        if self._closed:
            work.close()
            raise EngineDead(_CLOSED)
        there, here = self._begun(), self._way_back()
        outcome: asyncio.Future[T] = here.loop.create_future()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            tasks.append(there.loop.create_task(work, name=self._name))
            tasks[0].add_done_callback(lambda task: here.soon(partial(_settle, outcome, task.result)))

        def cancel() -> bool:
            there.soon(lambda: tasks[0].cancel())  # noqa: PLW0108 there is one only then
            return not outlast

        there.soon(begin)
        return await _outlasted(outcome, cancel)

    async def values(self, generator: AsyncGenerator[T, Any]) -> AsyncGenerator[T, None]:
        """Yield what a generator yields. Closing this cancels the generator, and takes until it has ended.

        What was made meanwhile crosses between the threads together: each crossing wakes one of them.
        """
        there, here, made = self._begun(), self._way_back(), deque[T]()
        news, room = asyncio.Event(), asyncio.Event()
        room.set()

        async def pump() -> None:
            async with aclosing(generator):
                async for value in generator:
                    made.append(value)
                    if len(made) == 1:  # else its taker is awake
                        here.soon(news.set)
                    if len(made) >= AHEAD:
                        room.clear()
                        if len(made) >= AHEAD:  # not taken just before
                            await room.wait()

        work = asyncio.create_task(self.run(pump()), name=f"{self._name}-values")
        work.add_done_callback(_retrieved)
        work.add_done_callback(lambda _: news.set())
        try:
            while made or not work.done():
                await news.wait()
                news.clear()
                while made:
                    yield made.popleft()
                if not room.is_set():
                    there.soon(room.set)
            await work
        finally:
            work.cancel()
            await asyncio.wait({work})

    def close(self) -> None:
        """Accept no more work, and cancel what still runs; does not wait for it. Idempotent."""
        self._closed = True
        if self._there is not None:
            self._there.soon(self._end)

    def _end(self) -> None:
        self._ended = True
        asyncio.get_running_loop().stop()

    def _begun(self) -> _Crossing:
        if self._there is None:
            runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
            self._there = _Crossing(runner.get_loop())
            threading.Thread(target=self._serve, args=(runner, self._there.loop), name=self._name, daemon=True).start()
        return self._there

    def _way_back(self) -> _Crossing:
        loop = asyncio.get_running_loop()
        if self._here is None or self._here.loop is not loop:
            self._here = _Crossing(loop)
        return self._here

    def _serve(self, runner: asyncio.Runner, loop: asyncio.AbstractEventLoop) -> None:
        with runner:
            while not self._ended:
                with suppress(BaseException):  # SystemExit of an inner task; its own waiter has it, too
                    loop.run_forever()


def is_async(call: Callable[..., Any]) -> bool:
    """Whether a call only makes a coroutine or an async generator."""
    inner = call if inspect.isroutine(call) else getattr(call, "__call__", call)  # noqa: B004 the bound method itself
    return inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)


def awaited(value: Awaitable[T]) -> Coroutine[Any, Any, T]:
    """Anything awaitable as a coroutine; one as it is, for then a task that is cancelled before it begins closes it."""

    async def wait() -> T:
        return await value

    return value if inspect.iscoroutine(value) else wait()


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


async def _outlasted(outcome: asyncio.Future[T], cancel: Callable[[], bool]) -> T:
    """The result of work elsewhere, which a cancellation of its waiter outlasts; `cancel` tells whether it will never begin.

    Work that was dropped before it began is cancelled.
    """
    try:
        return await asyncio.shield(outcome)
    except asyncio.CancelledError:
        outcome.add_done_callback(_retrieved)
        if not outcome.done() and not cancel():
            await asyncio.wait((outcome,))
        raise


def _settle(outcome: asyncio.Future[T], result: Callable[[], T]) -> None:
    """Only exceptions that a future can pass on leave the thread: others would end its waiter, or never reach it."""
    if outcome.done():
        return
    try:
        outcome.set_result(result())
    except StopIteration as error:
        outcome.set_exception(_raised_as(RuntimeError("the stage's code raised StopIteration"), error))
    except Exception as error:  # noqa: BLE001 its waiter's
        outcome.set_exception(error)
    except BaseException as error:  # noqa: BLE001 its waiter's
        outcome.set_exception(_raised_as(EngineError(f"the stage's code raised {type(error).__name__}"), error))


def _raised_as(made: Exception, cause: BaseException) -> Exception:
    made.__cause__ = cause
    return made


def _retrieved(ended: asyncio.Future[Any]) -> None:
    """Nobody may be left to look at the exception."""
    if not ended.cancelled():
        ended.exception()
