"""Input processors: plain ones run one after the other in a thread, and each result leaves it at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from omnibus.errors import EngineError
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire.request import Request
from omnibus.workers.engines.protocol import EngineInput, StageInput
from omnibus.workers.job_builder import JobBuilder
from tests.support.waiting import eventually

pytestmark = pytest.mark.unit
_let_go = threading.Event()


def process(stage_input: StageInput) -> EngineInput:
    prompt = stage_input.request.text()
    if prompt == "block":
        _let_go.wait(30)
    if prompt == "fail":
        raise ValueError("not this")
    return EngineInput(text=threading.current_thread().name)


async def process_async(stage_input: StageInput) -> EngineInput:
    return process(stage_input)


class Processor:
    async def __call__(self, stage_input: StageInput) -> EngineInput:
        return process(stage_input)


def process_later(stage_input: StageInput) -> Any:
    return process_async(stage_input)


processor = Processor()


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    _let_go.clear()
    yield
    _let_go.set()


def builder(function: str) -> JobBuilder:
    stage = StageSpec(stage_id=0, name="s", engine="sim", input_processor=f"{__name__}:{function}")
    return JobBuilder(PipelineSpec(name="p", stages=(stage,)), stage, cast("Any", None), cast("Any", None))


def given(prompt: str) -> StageInput:
    return StageInput(rid=prompt, request=Request(prompt=prompt))


async def test_result_is_there_when_those_behind_it_still_run_or_wait() -> None:
    made = builder("process")
    jobs = [asyncio.create_task(made.build(given(prompt))) for prompt in ("a", "fail", "block", "b")]
    await eventually(lambda: jobs[0].done() and jobs[1].done())
    assert not jobs[2].done()
    assert made.processed == 2, "it moves with each that returns or raises"
    _let_go.set()
    with pytest.raises(EngineError, match="ValueError: not this"):
        await jobs[1]
    assert (await jobs[3]).engine_input.text == (await jobs[0]).engine_input.text
    assert made.processed == 4
    made.close()


async def test_no_progress_is_shown_when_one_hangs_and_those_behind_it_give_up() -> None:
    made = builder("process")
    jobs = [asyncio.create_task(made.build(given(prompt))) for prompt in ("block", "a", "b")]
    await asyncio.sleep(0)
    for job in jobs[1:]:
        job.cancel()
    await asyncio.wait(jobs[1:])
    assert made.processed == 0
    _let_go.set()
    await jobs[0]
    made.close()


@pytest.mark.parametrize("function", ["process_async", "processor", "process_later"])
async def test_awaitable_result_is_made_on_a_loop_of_its_own(function: str) -> None:
    made = builder(function)
    assert (await made.build(given("a"))).engine_input.text == "input-s-loop"
    made.close()
