"""Threads of an engine, for code that may block: a call has ended when its thread is free, whether or not anybody still waits."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, suppress
from typing import Any, TypeVar

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
            work = self._pool.submit(_contained, call, args)
        except RuntimeError as error:  # it accepts no more
            raise EngineDead(_CLOSED) from error
        return await _outlasted(work, work.cancel)

    def close(self) -> None:
        """Accept no more calls, and drop those that have not begun; does not wait for those that have."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class EngineLoop:
    """An event loop in a thread of its own: async code that blocks it holds up its own kind, and not the replica.

    The thread begins with the first work.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = self._ended = False

    async def run(self, work: Coroutine[Any, Any, T], *, outlast: bool = True) -> T:
        """The value of some work; raises what it raises, and EngineError for what is no Exception.

        When this is cancelled, so is the work. The cancellation takes effect when that has ended, or at once without
        `outlast`; a second one always at once. Raises EngineDead after `close`.
        """
        if self._closed:
            work.close()
            raise EngineDead(_CLOSED)
        loop, outcome = self._begun(), Future[T]()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            tasks.append(loop.create_task(work, name=self._name))
            tasks[0].add_done_callback(lambda task: _settle(outcome, task.result))

        def cancel() -> bool:
            self._soon(lambda: tasks[0].cancel())  # noqa: PLW0108 there is one only then
            return not outlast

        loop.call_soon_threadsafe(begin)
        return await _outlasted(outcome, cancel)

    async def values(self, generator: AsyncGenerator[T, Any]) -> AsyncGenerator[T, None]:
        """Yield what a generator yields. Closing this cancels the generator, and takes until it has ended.

        What was made meanwhile crosses between the threads together: each crossing wakes one of them.
        """
        here, made = asyncio.get_running_loop(), deque[T]()
        news, room = asyncio.Event(), asyncio.Event()
        room.set()

        async def pump() -> None:
            async with aclosing(generator):
                async for value in generator:
                    made.append(value)
                    if len(made) == 1:  # else its taker is awake
                        here.call_soon_threadsafe(news.set)
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
                    self._soon(room.set)
            await work
        finally:
            work.cancel()
            await asyncio.wait({work})

    def close(self) -> None:
        """Accept no more work, and cancel what still runs; does not wait for it. Idempotent."""
        self._closed = True
        self._soon(self._end)

    def _end(self) -> None:
        self._ended = True
        asyncio.get_running_loop().stop()

    def _soon(self, call: Callable[[], object]) -> None:
        """Make a call on the loop, unless that has ended."""
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call)

    def _begun(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
            self._loop = runner.get_loop()
            threading.Thread(target=self._serve, args=(runner, self._loop), name=self._name, daemon=True).start()
        return self._loop

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


async def _outlasted(work: Future[T], cancel: Callable[[], bool]) -> T:
    """The result of work elsewhere, which a cancellation of its waiter outlasts; `cancel` tells whether it will never begin."""
    try:
        await _ended(work)
    except asyncio.CancelledError:
        if not cancel():
            await _ended(work)
        raise
    if work.cancelled():  # dropped before it began
        raise asyncio.CancelledError
    return work.result()


def _ended(work: Future[Any]) -> asyncio.Future[None]:
    """A future that is done when that one is, and that alone is cancelled with its waiter."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ended.done():
            ended.set_result(None)

    def wake_here(_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(wake)

    work.add_done_callback(wake_here)
    return ended


def _settle(outcome: Future[T], result: Callable[[], T]) -> None:
    try:
        outcome.set_result(_contained(result, ()))
    except Exception as error:  # noqa: BLE001 its waiter's
        outcome.set_exception(error)


def _contained(call: Callable[..., T], args: tuple[Any, ...]) -> T:
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
