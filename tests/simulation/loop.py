"""An event loop in virtual time: one thread, one order of events, processes that can be killed and suspended."""

from __future__ import annotations

import asyncio
import heapq
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any

EPOCH = 1_700_000_000.0
"""Time of the clocks at virtual time 0, seconds since the epoch."""
_PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


class Process:
    """A process of the model: whatever runs in its context dies and is suspended with it."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self._loop, self.name = loop, name
        self.context = copy_context()
        self.context.run(_PROCESS.set, self)
        self.dead = False
        self.left = False
        """Whether it has ended in order."""
        self.died_at = 0.0
        self.suspended_until = 0.0
        self._tasks: list[asyncio.Task[Any]] = []

    def spawn(self, work: Coroutine[Any, Any, Any], name: str = "main") -> asyncio.Task[Any]:
        """Run something in it; what nobody catches there is noted."""
        task = self._loop.create_task(work, name=f"{self.name}/{name}", context=self.context)
        task.add_done_callback(self._note)
        return task

    def kill(self) -> None:
        """Nothing of it reaches the outside any more: its connections are dead from here on, its tasks are taken down."""
        self.dead = True
        self.died_at = self._loop.time()
        self.suspended_until = 0.0
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    def leave(self) -> None:
        """It has ended in order, and what a thread of it still does ends with it."""
        self.left = True
        self.kill()

    @property
    def finished(self) -> bool:
        """Whether it has nothing more to do, and was not killed."""
        return self.left or (not self.dead and all(task.done() for task in self._tasks))

    def suspend(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while: not one instruction runs in between, while clocks and the broker go on."""
        self.suspended_until = self._loop.time() + seconds

    def _note(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self.dead:
            self._loop.failures.append(error)

    def adopt(self, task: asyncio.Task[Any]) -> None:
        self._tasks.append(task)


class _Handle:
    """A callback, and its time."""

    __slots__ = ("_cancelled", "args", "callback", "context", "when")

    def __init__(self, when: float, callback: Callable[..., object], args: tuple[Any, ...], context: Context) -> None:
        self.when, self.callback, self.args, self.context = when, callback, args, context
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        self.callback, self.args = _nothing, ()

    def cancelled(self) -> bool:
        return self._cancelled


def _nothing() -> None:
    return


class VirtualLoop(asyncio.AbstractEventLoop):
    """Time passes only when nothing is left to do; events of one moment keep the order in which they were made."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ready: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self._count = 0
        self.failures: list[BaseException] = []
        """Exceptions that no code caught."""
        self.outside = copy_context()
        """The context of what belongs to no process, such as the broker."""

    # Running

    def run(self, until: float, enough: Callable[[], bool] | None = None) -> None:
        """Run to virtual time `until`, or until `enough` holds, which is asked whenever time passes."""
        ready, timers = self._ready, self._timers
        while True:
            while ready:
                self._step(ready.popleft())
            if not timers or timers[0][0] > until or (enough is not None and enough()):
                break
            when, _, handle = heapq.heappop(timers)
            if not handle._cancelled:
                self._now = max(self._now, when)
                ready.append(handle)
        if enough is None or not enough():
            self._now = max(self._now, until)

    def _step(self, handle: _Handle) -> None:
        if handle._cancelled:
            return
        process = handle.context.get(_PROCESS)
        if process is not None and process.suspended_until > self._now:
            self._push(process.suspended_until, handle)
            return
        try:
            handle.context.run(handle.callback, *handle.args)
        except asyncio.CancelledError:
            return  # its process has died in it
        except Exception as error:  # noqa: BLE001 told by whoever runs the loop
            self.failures.append(error)

    def _push(self, when: float, handle: _Handle) -> None:
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))

    # What asyncio asks of a loop

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        handle = _Handle(self._now, callback, args, context if context is not None else copy_context())
        self._ready.append(handle)
        return handle

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        handle = _Handle(when, callback, args, context if context is not None else copy_context())
        self._push(when, handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        process = (context.get(_PROCESS) if context is not None else None) or _PROCESS.get()
        if process is not None:
            process.adopt(task)
        return task

    def run_in_executor(self, _executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """At once: threads have no order."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 the caller's
            future.set_exception(error)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.failures.append(error if error is not None else RuntimeError(str(context.get("message"))))

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False


@contextmanager
def virtual_time(loop: VirtualLoop, seed: int) -> Iterator[None]:
    """Make `loop` the running one, have all clocks say its time, and seed what draws tokens or from the global generator."""
    real = time.time, time.monotonic
    state, tokens, token_hex = random.getstate(), random.Random(seed), secrets.token_hex
    random.seed(seed)
    secrets.token_hex = lambda nbytes=8: tokens.randbytes(nbytes).hex()
    time.time = time.monotonic = lambda: EPOCH + loop._now
    asyncio._set_running_loop(loop)
    try:
        yield
    finally:
        asyncio._set_running_loop(None)
        time.time, time.monotonic = real
        secrets.token_hex = token_hex
        random.setstate(state)
