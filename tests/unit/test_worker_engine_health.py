"""What counts as stuck, and threads whose calls end when the thread does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from omnibus.errors import EngineError
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
        await eventually(lambda: made[0] > AHEAD)
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
