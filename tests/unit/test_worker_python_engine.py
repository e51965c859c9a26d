"""The python engine over every shape of callable, and the sim engine's promises."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from omnibus.errors import CheckpointMissing, ConfigError, EngineError, EngineRejected, InvalidRequest
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.request import ImagePart, Message, Request, TextPart
from omnibus.workers.engines import create_engine
from omnibus.workers.engines.protocol import (
    Chunk,
    Engine,
    EngineInput,
    Finished,
    Item,
    Job,
    Progress,
    StageInput,
    TextDelta,
)
from omnibus.workers.engines.python import PythonEngine
from omnibus.workers.engines.sim import expected_text
from tests.support.jobs import run_job
from tests.support.waiting import eventually

pytestmark = pytest.mark.unit


def shout(stage_input: StageInput) -> str:
    return stage_input.request.text().upper()


def in_thread(_stage_input: StageInput) -> bool:
    return threading.current_thread() is not threading.main_thread()


async def shout_async(stage_input: StageInput, sampling: Mapping[str, Any]) -> str:
    return stage_input.request.text().upper() + str(sampling.get("end", ""))


def spell(stage_input: StageInput) -> Iterator[str | Progress]:
    yield Progress(step=1, total=2)
    yield from stage_input.request.text()


async def spell_async(stage_input: StageInput) -> AsyncIterator[object]:
    for dead_letter in stage_input.request.text():
        yield dead_letter
    yield {"text": "given", "length": 3}


def sing(_stage_input: StageInput) -> Iterator[Chunk | str]:
    for number in range(3):
        yield Chunk(outputs={"audio": np.full(2, number), "sample_rate": 8000, "ids": [number]})
        yield f"{number} "


def sing_out_of_shape(_stage_input: StageInput) -> Iterator[Chunk]:
    yield Chunk(outputs={"audio": np.zeros(2)})
    yield Chunk(outputs={"audio": np.zeros((2, 2))})


def count_images(stage_input: StageInput) -> int:
    messages = stage_input.request.messages or ()
    return sum(isinstance(part, ImagePart) for message in messages for part in message.content)


def refuse(_stage_input: StageInput) -> str:
    raise InvalidRequest("not this")


async def forever(_stage_input: StageInput) -> AsyncIterator[str]:
    yield "a"
    await asyncio.sleep(0)
    yield "b"
    while True:
        await asyncio.sleep(0.001)
        yield "c"


class Unclosable:
    def __call__(self, _stage_input: StageInput) -> str:
        return threading.current_thread().name

    async def close(self) -> None:
        raise ValueError("the device is busy")


class Adder:
    outputs = {"sum": "json"}  # noqa: RUF012 as a user writes it
    rpc_methods = ("reset",)

    def __init__(self, start: int = 0) -> None:
        self.start, self.closed = start, False

    def __call__(self, stage_input: StageInput) -> int:
        return self.start + len(stage_input.request.text())

    def reset(self) -> str:
        self.start = 0
        return "reset"


def make_job(prompt: str = "abc", rid: str = "r", attempt: int = 1, **sampling: Any) -> Job:
    stage_input = StageInput(rid=rid, request=Request(prompt=prompt))
    return Job(
        rid=rid, stage_input=stage_input, engine_input=EngineInput(text=prompt), sampling=sampling, attempt=attempt
    )


def stage(name: str, *, final: str | None = "text", **engine_args: Any) -> StageSpec:
    return StageSpec(
        stage_id=0, name="s", engine="python", model=f"{__name__}:{name}", final_output=final is not None,
        final_output_type=final, engine_args=engine_args,
    )  # fmt: skip


def sim(**engine_args: Any) -> StageSpec:
    return StageSpec(stage_id=0, name="s", engine="sim", engine_args=engine_args)


async def started(spec: StageSpec) -> Engine:
    engine = create_engine(spec)
    await engine.start()
    return engine


async def run(spec: StageSpec, job: Job) -> list[Item]:
    engine = await started(spec)
    try:
        return [item async for item in engine.generate(job)]
    finally:
        await engine.close()


def last(items: list[Item]) -> Finished:
    assert isinstance(items[-1], Finished)
    assert not any(isinstance(item, Finished) for item in items[:-1])
    return items[-1]


async def test_plain_function_returns_its_value_as_the_only_output() -> None:
    assert last(await run(stage("shout"), make_job())).outputs == {"text": "ABC"}


VALUES: Mapping[str, Any] = {
    "list": ["a", 1], "number": 2.5, "array": np.arange(2), "bytes": b"caf\xc3\xa9 \xff", "object": object(), "none": None,
}  # fmt: skip


def look_up(stage_input: StageInput) -> Any:
    return VALUES[stage_input.request.text()]


@pytest.mark.parametrize(
    ("value", "text"),
    [("list", '["a",1]'), ("number", "2.5"), ("array", "[0,1]"), ("bytes", "café \ufffd"), ("none", None)],
)
async def test_text_is_json_or_utf8_when_the_value_is_no_str(value: str, text: str | None) -> None:
    assert last(await run(stage("look_up"), make_job(value))).outputs == {"text": text}


def listen(stage_input: StageInput) -> str:
    return "".join(str(part) for part in stage_input.flows[stage_input.request.text()])


@pytest.mark.parametrize(("source", "advice"), [("input", "resumable"), ("count", "sources")])
async def test_request_is_refused_when_the_stage_reads_a_flow_that_is_not_there(source: str, advice: str) -> None:
    with pytest.raises(EngineRejected, match=advice):
        await run(stage("listen"), make_job(source))


async def test_text_that_has_no_json_form_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="object"):
        await run(stage("look_up"), make_job("object"))


async def test_plain_function_runs_outside_the_event_loop() -> None:
    assert last(await run(stage("in_thread", final="json"), make_job())).outputs == {"json": True}


async def test_async_function_with_two_parameters_gets_the_sampling_parameters() -> None:
    assert last(await run(stage("shout_async"), make_job(end="!"))).outputs == {"text": "ABC!"}


async def test_rejected_when_the_function_takes_no_parameters_and_the_request_has_some() -> None:
    with pytest.raises(EngineRejected, match="takes no sampling parameters") as caught:
        await run(stage("shout"), make_job(temperature=0.5))
    assert caught.value.param == "temperature"
    assert last(await run(stage("shout"), make_job(seed=5))).outputs == {"text": "ABC"}, "nothing is drawn there"


async def test_generator_streams_text_and_progress() -> None:
    items = await run(stage("spell"), make_job())
    assert items[0] == Progress(step=1, total=2)
    assert [item.text for item in items if isinstance(item, TextDelta)] == ["a", "b", "c"]
    assert last(items).outputs == {"text": "abc"}


async def test_chunks_leave_as_they_come_and_joined_they_are_the_outputs_when_nothing_else_is_yielded() -> None:
    items = await run(stage("sing", outputs={"audio": "audio", "ids": "tokens", "words": "text"}), make_job())
    assert [item.outputs["ids"] for item in items if isinstance(item, Chunk)] == [[0], [1], [2]]
    outputs = last(items).outputs
    assert outputs["audio"].tolist() == [0, 0, 1, 1, 2, 2]
    assert (outputs["ids"], outputs["sample_rate"], outputs["words"]) == ([0, 1, 2], 8000, "0 1 2 ")


async def test_error_tells_it_when_chunks_do_not_fit_together() -> None:
    with pytest.raises(EngineError, match="chunks do not fit together"):
        await run(stage("sing_out_of_shape", outputs={"audio": "audio"}), make_job())


async def test_async_generator_gives_named_outputs_last() -> None:
    items = await run(stage("spell_async", outputs={"text": "text", "length": "json"}), make_job())
    assert last(items).outputs == {"text": "given", "length": 3}


async def test_media_parts_reach_the_callable() -> None:
    content = (TextPart(text="what is this"), ImagePart(data=b"png"))
    stage_input = StageInput(rid="r", request=Request(messages=(Message(role="user", content=content),)))
    job = Job(rid="r", stage_input=stage_input, engine_input=EngineInput(), sampling={})
    assert last(await run(stage("count_images", final="json"), job)).outputs == {"json": 1}


async def test_class_is_made_once_and_declares_its_outputs() -> None:
    engine = await started(stage("Adder", final=None, start=10))
    assert engine.outputs == {"sum": "json"}
    assert await engine.rpc("reset", (), {}) == "reset"
    with pytest.raises(InvalidRequest):
        await engine.rpc("__init__", (), {})
    assert [item async for item in engine.generate(make_job())][-1] == Finished(outputs={"sum": 3})
    await engine.close()


async def test_threads_end_when_the_callables_close_raises() -> None:
    engine = await started(stage("Unclosable"))
    items = [item async for item in engine.generate(make_job())]
    with pytest.raises(ValueError, match="busy"):
        await engine.close()
    ended = {last(items).outputs["text"], "python-s-loop"}
    await eventually(lambda: ended.isdisjoint(thread.name for thread in threading.enumerate()))


async def test_error_of_the_callable_comes_out_unchanged() -> None:
    with pytest.raises(InvalidRequest, match="not this"):
        await run(stage("refuse"), make_job())


async def test_generator_ends_as_aborted_when_it_is_aborted() -> None:
    engine = await started(stage("forever"))
    items = []
    async for item in engine.generate(make_job()):
        items.append(item)
        if len(items) == 3:
            await engine.abort("r")
    assert last(items).finish_reason == "abort"
    assert engine.stats().running == 0
    await engine.close()


async def test_call_is_closed_when_it_is_cancelled_before_it_begins() -> None:
    """A coroutine that nobody awaits would be a warning, which is an error here."""
    engine, begun, go_on = PythonEngine(stage("shout_async")), threading.Event(), threading.Event()
    await engine.start()

    async def hold() -> None:
        begun.set()
        go_on.wait(30.0)

    holding = asyncio.create_task(engine._loop.run(hold()))
    assert await asyncio.to_thread(begun.wait, 30.0)
    call = asyncio.create_task(run_job(engine, make_job()))
    await eventually(lambda: engine.stats().running)
    call.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(holding, call, return_exceptions=True)
    assert call.cancelled()
    await engine.close()
    gc.collect()


@pytest.mark.parametrize("model", ["nowhere:f", f"{__name__}:absent", "no-colon", f"{__name__}:NOT_CALLABLE"])
def test_missing_model_is_a_missing_checkpoint(model: str) -> None:
    with pytest.raises(CheckpointMissing):
        create_engine(StageSpec(stage_id=0, name="s", engine="python", model=model))


NOT_CALLABLE = 3


async def test_missing_outputs_are_an_engine_error() -> None:
    with pytest.raises(EngineError, match="length"):
        await run(stage("shout", outputs={"text": "text", "length": "json"}), make_job())


async def test_sim_answers_what_the_prompt_foretells() -> None:
    items = await run(sim(tokens=5, latency=0.002, steps=2), make_job("one two"))
    assert last(items).outputs == {"text": expected_text("one two", 5)}
    assert "".join(item.text for item in items if isinstance(item, TextDelta)) == "one two one two one"
    assert [item.step for item in items if isinstance(item, Progress)] == [1, 2]


async def test_sim_takes_sampling_parameters_over_its_arguments() -> None:
    assert last(await run(sim(tokens=5), make_job("a", tokens=2))).outputs == {"text": "a a"}


async def test_sim_fails_on_the_configured_attempts() -> None:
    spec = sim(fail_on={"attempts": [1]}, reject_on={"rid": "^bad"})
    with pytest.raises(EngineError):
        await run(spec, make_job(attempt=1))
    last(await run(spec, make_job(attempt=2)))
    with pytest.raises(EngineRejected):
        await run(spec, make_job(rid="bad-1", attempt=2))


async def test_sim_hangs_until_aborted() -> None:
    engine = await started(sim(hang_on={"rid": "."}))
    hanging = asyncio.ensure_future(_collect(engine))
    await eventually(lambda: engine.stats().running)
    await engine.abort("r")
    async with asyncio.timeout(2):
        assert last(await hanging).finish_reason == "abort"


async def _collect(engine: Engine) -> list[Item]:
    return [item async for item in engine.generate(make_job())]


async def test_sim_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ConfigError):
        create_engine(sim(latencyy=1))
    with pytest.raises(EngineRejected):
        await run(sim(), make_job(tokens="many"))


@pytest.mark.parametrize("wish", [{"tokens": 10**9}, {"steps": 10**9, "latency": 1}, {"size": -1}, {"size": 10**12}])
async def test_sim_refuses_more_than_it_could_make(wish: dict[str, Any]) -> None:
    with pytest.raises(EngineRejected):
        await run(sim(), make_job(**wish))


async def test_sim_declares_every_kind_of_output() -> None:
    kinds = {"t": "text", "i": "image", "a": "audio", "x": "tensor", "k": "tokens", "j": "json"}
    made = last(await run(sim(outputs=kinds, size=8), make_job("a b"))).outputs
    assert made["i"].shape == (8, 8, 3)
    assert set(made) == set(kinds)


def test_unknown_engine_is_named() -> None:
    with pytest.raises(ConfigError, match="vllmm"):
        create_engine(StageSpec(stage_id=0, name="s", engine="vllmm"))  # type: ignore[arg-type]
