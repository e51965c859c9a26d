"""Bundles: members run at once, have one fate, and what they make is told apart by role."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

import pytest
from msgspec.structs import replace as with_fields

from omnibus.errors import EngineDead, EngineError, EngineRejected, OmnibusError, PipelineError, RequestTooLarge
from omnibus.pipeline.loading import parse_pipeline
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire.envelope import TokenUsage
from omnibus.wire.payload import split_by_role
from omnibus.wire.request import Request
from omnibus.workers.bundle import items_of
from omnibus.workers.engines.protocol import (
    MOST_MEMBERS,
    Engine,
    EngineInput,
    Finished,
    Item,
    Job,
    StageInput,
    TextDelta,
)  # fmt: skip
from omnibus.workers.item_checks import check_item
from omnibus.workers.job_builder import JobBuilder
from tests.support import companion_stages
from tests.support.waiting import eventually

pytestmark = pytest.mark.unit
STAGES = "tests.support.companion_stages"


class Scripted:
    """An engine whose members do what their roles' scripts say; it knows who runs and who was closed."""

    def __init__(self, **scripts: Any) -> None:
        self.scripts, self.running, self.closed = scripts, set[str](), set[str]()

    async def generate(self, job: Job) -> AsyncIterator[Item]:
        role = job.stage_input.role
        self.running.add(role)
        try:
            async for item in self.scripts[role]():
                yield item
        finally:
            await asyncio.sleep(0)  # an end takes a moment
            self.running.discard(role)
            self.closed.add(role)


def job(*roles: str) -> Job:
    def one(role: str) -> Job:
        given = StageInput(rid="a", request=Request(prompt=role), role=role)
        return Job(rid="a", stage_input=given, engine_input=EngineInput(text=role), sampling={})

    return replace(one("main"), companions={role: one(role) for role in roles})


def says(*words: str, reason: str = "stop", **more: Any) -> Any:
    async def script() -> AsyncIterator[Item]:
        for word in words:
            await asyncio.sleep(0)
            yield TextDelta(text=word)
        usage = TokenUsage(prompt_tokens=2, completion_tokens=len(words))
        yield Finished(outputs={"text": "".join(words), **more}, finish_reason=reason, usage=usage)

    return script


def raises(error: BaseException) -> Any:
    async def script() -> AsyncIterator[Item]:
        yield TextDelta(text="x")
        raise error

    return script


async def waits() -> AsyncIterator[Item]:
    await asyncio.Event().wait()
    yield TextDelta(text="never")


async def items(engine: Scripted, *roles: str) -> list[Item]:
    async with aclosing(cast("Any", items_of(cast("Engine", engine), job(*roles)))) as made:
        return [item async for item in made]


async def test_outputs_are_told_apart_by_role_and_only_the_main_text_is_passed_on() -> None:
    engine = Scripted(main=says("a", "b", reason="length"), negative=says("x", "y", "z"))
    *deltas, last = await items(engine, "negative")
    assert "".join(item.text for item in deltas if isinstance(item, TextDelta)) == "ab"
    assert len(deltas) == 5, "each item of a companion is a sign of life"
    assert last == Finished(
        outputs={"text": "ab"}, finish_reason="length", usage=TokenUsage(4, 5), companions={"negative": {"text": "xyz"}}
    )
    assert engine.closed == {"main", "negative"}


async def test_members_run_at_once() -> None:
    met = asyncio.Barrier(3)

    def meets(role: str) -> Any:
        async def script() -> AsyncIterator[Item]:
            await met.wait()
            yield Finished(outputs={"text": role})

        return script

    engine = Scripted(**{role: meets(role) for role in ("main", "negative", "third")})
    async with asyncio.timeout(5):
        (last,) = await items(engine, "negative", "third")
    assert isinstance(last, Finished)
    assert set(last.companions) == {"negative", "third"}


@pytest.mark.parametrize("failing", ["main", "negative"])
async def test_everything_is_closed_when_one_member_fails(failing: str) -> None:
    other = {"main": "negative", "negative": "main"}[failing]
    engine = Scripted(**{failing: raises(EngineRejected("no", param="prompt")), other: waits})
    with pytest.raises(EngineRejected) as caught:
        await items(engine, "negative")
    assert engine.closed == {"main", "negative"}
    assert not engine.running
    wanted = ("no", "prompt") if failing == "main" else ("companion 'negative': no", None)
    assert (caught.value.message, caught.value.param) == wanted
    assert caught.value.__cause__ is not caught.value


async def test_error_that_an_engine_raises_for_several_jobs_stays_as_it_is() -> None:
    error = EngineError("the batch failed")
    with pytest.raises(EngineError, match="companion 'negative': the batch failed") as caught:
        await items(Scripted(main=waits, negative=raises(error)), "negative")
    assert error.message == "the batch failed"
    assert caught.value.__cause__ is error
    dead = EngineDead("gone")
    with pytest.raises(EngineDead) as died:
        await items(Scripted(main=waits, negative=raises(dead)), "negative")
    assert (died.value, died.value.__cause__) == (dead, None)


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a bug"), asyncio.CancelledError(), SystemExit(3), KeyboardInterrupt()]
)
async def test_whatever_a_member_raises_is_an_engine_error(error: BaseException) -> None:
    with pytest.raises(EngineError, match="companion 'negative'"):
        await items(Scripted(main=waits, negative=raises(error)), "negative")


async def test_bundle_is_aborted_when_one_member_is() -> None:
    engine = Scripted(main=waits, negative=says("x", reason="abort"))
    *_, last = await items(engine, "negative")
    assert last == Finished(outputs={}, finish_reason="abort")
    assert engine.closed == {"main", "negative"}


async def test_bundle_is_aborted_when_a_companion_was_done_before() -> None:
    engine = Scripted(main=says("half", reason="abort"), negative=says())
    *_, last = await items(engine, "negative")
    assert isinstance(last, Finished)
    assert (last.finish_reason, last.outputs, last.companions) == ("abort", {"text": "half"}, {})


async def test_every_member_is_closed_when_the_bundle_is_cancelled() -> None:
    engine = Scripted(main=waits, negative=waits, third=waits)
    running = asyncio.create_task(items(engine, "negative", "third"))
    await eventually(lambda: len(engine.running) == 3)
    running.cancel()
    await asyncio.wait({running})
    assert engine.closed == {"main", "negative", "third"}
    assert not engine.running


async def test_bundle_ends_when_a_member_ends_without_a_result() -> None:
    async def nothing() -> AsyncIterator[Item]:
        return
        yield

    with pytest.raises(EngineError, match="companion 'negative': the engine ended without a result"):
        await items(Scripted(main=waits, negative=nothing), "negative")


async def test_fast_member_waits_when_nobody_takes_its_items() -> None:
    made = 0

    async def endless() -> AsyncIterator[Item]:
        nonlocal made
        while True:
            made += 1
            yield TextDelta(text="x")

    bundle = items_of(cast("Engine", Scripted(main=endless, negative=waits)), job("negative"))
    async with aclosing(cast("Any", bundle)):
        await anext(bundle)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert made < 100


async def test_inputs_in_parts_are_closed_with_their_bundle() -> None:
    companion_stages.closed.clear()
    made = builder("expand", input_processor=f"{STAGES}:in_parts")
    bundle = await made.build(StageInput(rid="a", request=Request(prompt=companion_stages.prompt_of("a b", "c"))))

    def reads(job: Job) -> Any:
        async def script() -> AsyncIterator[Item]:
            assert job.parts is not None
            async for part in job.parts:
                yield TextDelta(text=part.text or "")
                await asyncio.Event().wait()

        return script

    engine = Scripted(main=reads(bundle), negative=reads(bundle.companions["negative"]))
    async with aclosing(cast("Any", items_of(cast("Engine", engine), bundle))) as items, aclosing(bundle.parts):  # type: ignore[type-var]
        await anext(items)
        await anext(items)
    assert companion_stages.closed == {"main", "negative"}
    made.close()


def test_job_without_companions_is_the_engines_own() -> None:
    class Plain:
        def generate(self, _job: Job) -> object:
            return self

    plain = Plain()
    assert cast("object", items_of(cast("Engine", plain), job())) is plain


# What the builder makes of a request


def builder(expand: str, **fields: Any) -> JobBuilder:
    stage = StageSpec(stage_id=0, name="s0", engine="sim", prompt_expand=f"{STAGES}:{expand}", **fields)
    return JobBuilder(PipelineSpec(name="p", stages=(stage,)), stage, cast("Any", None), cast("Any", None))


async def built(made: JobBuilder, prompt: str, **fields: Any) -> Job:
    try:
        return await made.build(StageInput(rid="a", request=Request(prompt=prompt, **fields)), attempt=3)
    finally:
        made.close()


@pytest.mark.parametrize("expand", ["expand", "expand_async"])
async def test_each_member_has_an_input_and_parameters_of_its_own(expand: str) -> None:
    prompt = companion_stages.prompt_of("red", "blue", negative={"tokens": 7})
    made = await built(builder(expand, input_processor=f"{STAGES}:by_role"), prompt, cache_salt="mine")
    negative = made.companions["negative"]
    assert (made.engine_input.text, negative.engine_input.text) == ("main: red", "negative: blue")
    assert (made.sampling, negative.sampling) == ({}, {"tokens": 7})
    assert (negative.rid, negative.attempt, negative.stage_input.request.cache_salt) == ("a", 3, "mine")
    assert not negative.companions


async def test_job_has_no_companions_when_nothing_is_expanded() -> None:
    made = await built(builder("expand"), "red")
    assert (made.engine_input.text, made.companions) == ("red", {})


async def test_main_member_is_the_request_when_the_function_gives_companions_alone() -> None:
    given = StageInput(rid="a", request=Request(prompt="red"))
    made = builder("expand")
    made._expand = lambda one: {"negative": replace(one, request=with_fields(one.request, prompt="blue"))}
    job = await made.build(given)
    made.close()
    assert (job.engine_input.text, job.companions["negative"].engine_input.text) == ("red", "blue")


async def test_bundle_is_refused_when_it_has_too_many_members() -> None:
    assert len((await built(builder("expand"), "|".join("x" * MOST_MEMBERS))).companions) == MOST_MEMBERS - 1
    with pytest.raises(RequestTooLarge, match=f"expands to {MOST_MEMBERS + 1} members, and {MOST_MEMBERS} may be"):
        await built(builder("expand"), "|".join("x" * (MOST_MEMBERS + 1)))


@pytest.mark.parametrize("prompt", ["text", "role", "input"])
async def test_function_that_returns_no_bundle_is_named(prompt: str) -> None:
    with pytest.raises(EngineError, match=f"stage 's0': {STAGES}:expand_wrongly: return StageInputs by role"):
        await built(builder("expand_wrongly"), prompt)


async def test_function_that_raises_is_named() -> None:
    with pytest.raises(EngineError, match="expand_wrongly: ZeroDivisionError: a bug"):
        await built(builder("expand_wrongly"), "raise")


def test_stage_cannot_expand_what_it_reads_as_a_flow() -> None:
    spec = """
name: p
stages:
- {stage_id: 0, name: a, engine: python, model: "m:a"}
- {stage_id: 1, name: b, engine: python, model: "m:b", input_sources: [0], final_output: true, final_output_type: text%s}
edges: [{source: 0, target: 1, mode: stream}]
"""
    assert parse_pipeline(spec % "").stages[1].prompt_expand is None
    with pytest.raises(PipelineError, match=r"edges\[0\].mode: stage 1 expands its input"):
        parse_pipeline(spec % ', prompt_expand: "m:f"')


# On the wire, and at its border


def test_outputs_are_split_by_role() -> None:
    assert split_by_role({"text": 1, "text@negative": 2, "ids@negative": 3, "text@r": 4}) == (
        {"text": 1}, {"negative": {"text": 2, "ids": 3}, "r": {"text": 4}},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("item", "fault"),
    [
        (Finished(outputs={"text@x": "a"}), "the name of an output has no '@'"),
        (Finished(outputs={"text": "a"}, companions={"negative": {"text": 5}}), "a text is a str"),
    ],
)
def test_outputs_are_checked_in_every_member(item: Finished, fault: str) -> None:
    with pytest.raises(OmnibusError, match=f"stage 'say': .*{fault}"):
        check_item("say", {"text": "text"}, item)
