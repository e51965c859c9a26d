"""What counts as stuck, and threads whose calls end when the thread does."""

from __future__ import annotations

import asyncio
import threading

import pytest

from omnibus.errors import EngineError
from omnibus.workers.engine_health import LOOKS, Stalls
from omnibus.workers.engines.threads import EngineThreads, within

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
