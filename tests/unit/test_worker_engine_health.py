"""What counts as stuck, and threads whose calls end when the thread does."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from omnibus.errors import EngineDead, EngineError
from omnibus.workers.engine_health import LOOKS, Stalls
from omnibus.workers.engines.threads import AHEAD, EngineLoop, EngineThreads, within
from tests.support.waiting import eventually

pytestmark = pytest.mark.unit


def test_execution_is_stuck_when_it_came_no_further_for_many_looks() -> None:
    stalls = Stalls()
    looks = [stalls.look({"stuck": 3, "running": number}) for number in range(LOOKS + 1)]
    assert looks[:-1] == [[]] * LOOKS
    assert looks[-1] == ["stuck"]


def test_count_starts_over_when_an_execution_comes_further() -> None:
    """As after a suspension of the whole process: one look cannot stand for all the time that passed."""
    stalls = Stalls()
    for _ in range(LOOKS):
        stalls.look({"a": 1})
    assert stalls.look({"a": 2}) == []
    assert not any(stalls.look({"a": 2}) for _ in range(LOOKS - 1))


def test_nothing_is_stuck_when_nothing_runs_or_another_runs_in_its_place() -> None:
    stalls = Stalls()
    assert not any(stalls.look({}) for _ in range(3 * LOOKS))
    assert not any(stalls.look({number: 0}) for number in range(3 * LOOKS))


async def test_call_ends_with_its_thread_when_it_is_cancelled() -> None:
    threads, begun, let_go = EngineThreads("t"), threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        let_go.wait()

    call = asyncio.create_task(threads.run(block))
    queued = asyncio.create_task(threads.run(block))
    await asyncio.to_thread(begun.wait)
    for one in (call, queued):
        one.cancel()
    await asyncio.wait({queued}, timeout=5)
    assert queued.cancelled(), "it had not begun"
    assert not call.done()
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    threads.close()


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_what_is_no_exception_leaves_a_thread_as_an_engine_error(kind: type[BaseException]) -> None:
    def fail() -> None:
        raise kind

    with pytest.raises(EngineError, match=kind.__name__) as raised:
        await EngineThreads("t").run(fail)
    assert isinstance(raised.value.__cause__, kind)


async def test_wait_is_over_in_time_when_the_work_heeds_no_cancellation() -> None:
    let_go = asyncio.Event()

    async def stubborn() -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    with pytest.raises(TimeoutError):
        await within(0.01, stubborn(), "stubborn")
    let_go.set()


async def _value() -> int:
    return 3


async def test_result_is_returned_when_it_is_there_in_time() -> None:
    assert await within(5.0, _value(), "value") == 3


async def test_async_work_has_ended_when_its_cancelled_waiter_returns() -> None:
    loop, begun, let_go, ended = EngineLoop("t"), threading.Event(), threading.Event(), threading.Event()

    async def block() -> None:
        begun.set()
        let_go.wait(30)  # blocks its loop, and not that of the test
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    work = asyncio.create_task(loop.run(block()))
    await asyncio.to_thread(begun.wait, 30)
    work.cancel()
    await asyncio.sleep(0)
    assert not work.done()
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert ended.is_set()
    loop.close()
    loop.close()


async def test_generator_is_not_far_ahead_of_its_reader_and_ends_with_it() -> None:
    loop, made, ended = EngineLoop("t"), [0], threading.Event()

    async def count() -> AsyncGenerator[int, None]:
        try:
            while True:
                made[0] += 1
                yield made[0]
        finally:
            ended.set()

    async with aclosing(loop.values(count())) as values:
        taken = [await anext(values) for _ in range(10)]
        await eventually(lambda: made[0] >= AHEAD)
    assert taken == list(range(1, 11))
    assert made[0] <= AHEAD + 11
    assert ended.is_set()
    loop.close()


async def test_exit_of_an_inner_task_is_its_waiters_error_and_the_loop_goes_on() -> None:
    loop = EngineLoop("t")

    async def leave() -> None:
        raise SystemExit(3)

    async def outer() -> None:
        await asyncio.create_task(leave())

    with pytest.raises(EngineError, match="SystemExit"):
        await loop.run(outer())
    assert await loop.run(asyncio.sleep(0, "on")) == "on"
    loop.close()


@pytest.mark.parametrize("outlast", [True, False])
@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt, SystemExit])
async def test_what_is_no_exception_leaves_async_work_as_an_engine_error(
    kind: type[BaseException], *, outlast: bool
) -> None:
    loop = EngineLoop("t")

    async def fail() -> None:
        raise kind

    with pytest.raises(EngineError, match=kind.__name__):
        await loop.run(fail(), outlast=outlast)
    assert await loop.run(asyncio.sleep(0, "on"), outlast=outlast) == "on"
    loop.close()


async def test_waiter_that_does_not_outlast_its_work_ends_at_once_and_the_work_is_cancelled() -> None:
    loop, begun, let_go, ended = EngineLoop("t"), threading.Event(), threading.Event(), threading.Event()

    async def block() -> None:
        begun.set()
        let_go.wait(30)
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    work = asyncio.create_task(loop.run(block(), outlast=False))
    await asyncio.to_thread(begun.wait, 30)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    let_go.set()
    assert await asyncio.to_thread(ended.wait, 30)
    loop.close()


async def test_work_is_cancelled_when_its_loop_is_closed_and_later_work_is_refused_and_closed() -> None:
    loop, begun, ended = EngineLoop("t"), asyncio.Event(), threading.Event()
    here = asyncio.get_running_loop()

    async def last() -> None:
        here.call_soon_threadsafe(begun.set)
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    running = asyncio.create_task(loop.run(last()))
    await begun.wait()
    loop.close()
    with pytest.raises(EngineError, match="CancelledError"):
        await running
    assert ended.is_set()
    late = last()
    with pytest.raises(EngineDead, match="closed"):
        await loop.run(late)
    assert inspect.getcoroutinestate(late) == inspect.CORO_CLOSED


async def test_call_is_refused_when_the_threads_are_closed() -> None:
    threads = EngineThreads("t")
    threads.close()
    with pytest.raises(EngineDead, match="closed"):
        await threads.run(int)
