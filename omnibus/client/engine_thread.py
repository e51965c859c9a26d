"""An event loop on a thread of its own, on which a session lives."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, Self, TypeVar

import uvloop

from omnibus.errors import EngineDead, OmnibusError

S = TypeVar("S")
T = TypeVar("T")
ShutdownHook = Callable[[Exception], None]


class EngineThread(Generic[S]):
    """Opens a session, and keeps it open until `shutdown`. Its methods are for other threads and other loops."""

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[S]], shutdown_hook: ShutdownHook) -> None:
        """Returns when the session is open; raises what it raises. `shutdown_hook` is called when it is over, with the reason."""
        self._opening, self._shutdown_hook = opening, shutdown_hook
        self._opened: Future[S] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: Future[None] = Future()
        self._end = EngineDead("the engine was shut down")
        self._thread = threading.Thread(target=self._run_loop, name="omnibus-engine", daemon=True)
        self._thread.start()
        atexit.register(self.shutdown)
        try:
            self.session = self._opened.result()  # bounded by the opening's own deadlines
        except BaseException:
            self.shutdown()  # the caller may have been interrupted while it waited
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    @property
    def stopped(self) -> bool:
        """Whether `shutdown` was called."""
        return self._stopping.done()

    def is_alive(self) -> bool:
        """Whether the session is open."""
        return self._thread.is_alive() and self._loop is not None

    @property
    def errored(self) -> bool:
        """Whether the session is over without a `shutdown`."""
        return not self.stopped and not self.is_alive()

    async def check_health(self) -> None:
        """Raise EngineDead, with the reason, when the session is over."""
        if not self.is_alive():
            raise self._end

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the session's loop and wait; raises EngineDead when it is over. Ctrl-C cancels the work."""
        started = self._start(work)
        try:
            return started.result()
        except concurrent.futures.CancelledError:
            raise self._end from None
        except KeyboardInterrupt:
            started.cancel()
            raise

    async def run_async(self, work: Coroutine[Any, Any, T]) -> T:
        """The same from another loop; cancelling it cancels the work."""
        started = self._start(work)
        try:
            return await asyncio.wrap_future(started)
        except asyncio.CancelledError:
            if self._loop is None and started.cancelled():
                raise self._end from None
            raise

    def shutdown(self) -> None:
        """Close the session in order; idempotent, and blocks."""
        atexit.unregister(self.shutdown)
        if not self._stopping.done():
            self._stopping.set_result(None)
        self._thread.join()

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            if self._loop is not None:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:  # the loop was closed just now
            work.close()
            raise self._end from error
        work.close()
        raise self._end

    def _run_loop(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._main())
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 raised to the users of the engine
            self._fail(error)
        finally:
            self._loop = None
            self._shutdown_hook(self._end)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        stopping: asyncio.Future[None] = asyncio.wrap_future(self._stopping)
        session = asyncio.create_task(self._hold(stopping), name="session")
        await asyncio.wait({session, stopping}, return_when=asyncio.FIRST_COMPLETED)
        self._loop = None  # what is called from now on would never run
        if not self._opened.done():
            session.cancel()  # stopped before it was open
        await session

    async def _hold(self, stopping: asyncio.Future[None]) -> None:
        async with self._opening() as session:
            self._opened.set_result(session)
            await asyncio.shield(stopping)

    def _fail(self, error: BaseException) -> None:
        reason = error.message if isinstance(error, OmnibusError) else f"{type(error).__name__}: {error}"
        self._end = EngineDead(f"the engine has died: {reason}")
        if not self._opened.done():
            self._opened.set_exception(self._end if isinstance(error, asyncio.CancelledError) else error)
