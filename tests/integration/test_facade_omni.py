"""Omni and AsyncOmni against a running cluster: `nats=`, or OMNIBUS_NATS_URL."""

from __future__ import annotations

import asyncio
import io
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from rich.console import Console

from omnibus.broker.connection import Connection
from omnibus.client.async_omni import AsyncOmni
from omnibus.client.omni import Omni
from omnibus.client.producer import Submission
from omnibus.client.progress_bar import Bar
from omnibus.client.request_events import Result
from omnibus.errors import (
    EmptyPrompt,
    EngineRejected,
    InvalidRequest,
    Overloaded,
    PipelineError,
    RequestConflict,
    UnsupportedModality,
)
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.deployed_pipelines import deploy_pipeline
from omnibus.requests.state import RequestState
from omnibus.wire.request import Request
from tests.support.facade import PIPELINE
from tests.support.flow import serving as served_here
from tests.support.flow import sim
from tests.support.served import write_pipeline
from tests.support.waiting import eventually
from tools.serving import Serving, serving

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cluster(scratch: Path) -> Iterator[Serving]:
    """`omnibus serve` as a process of its own."""
    file = write_pipeline(scratch / "facade-cluster", PIPELINE)
    with serving(str(file), "--no-frontdoor", "--nats-port", "0", state_dir=scratch / "facade-state") as running:
        yield running


@pytest.fixture(scope="module")
def omni(cluster: Serving) -> Iterator[Omni]:
    with Omni("facade", nats=cluster.nats_url) as made:
        yield made


@pytest_asyncio.fixture
async def async_omni(cluster: Serving) -> AsyncIterator[AsyncOmni]:
    async with AsyncOmni(nats=cluster.nats_url) as made:
        yield made


def test_results_come_in_the_order_of_the_prompts(omni: Omni) -> None:
    prompts = [f"prompt number {index}" + " and more" * (index % 3) for index in range(40)]
    results = omni.generate(prompts, output_modalities=["text", "image"], use_tqdm=False)
    assert [result.text for result in results] == prompts
    assert [result.prompt for result in results] == prompts
    assert all(result.output("image") for result in results)
    assert {timing.stage_id for timing in results[0].timings} == {0, 1}


def test_one_prompt_is_a_batch_of_one(omni: Omni) -> None:
    assert [one.text for one in omni.generate("alone", output_modalities=["text"])] == ["alone"]
    assert [one.text for one in omni.generate([7, 8], output_modalities=["text"])] == ["7 8"]
    assert omni.generate([]) == []


def test_failed_prompt_disturbs_no_other(omni: Omni) -> None:
    prompts = ["good", Request(prompt="bad", sampling_params={"writer": {"reject_on": {"rid": "."}}}), "fine"]
    good, bad, fine = omni.generate(prompts, output_modalities=["text"])
    assert (good.text, fine.text) == ("good", "fine")
    with pytest.raises(EngineRejected):
        bad.raise_for_failure()


def test_other_prompts_go_on_when_following_one_fails_of_a_fault(omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    result_of = Submission.result

    async def faulty(submission: Submission) -> Result:
        result = await result_of(submission)
        if any(output.text == "bad" for output in result.outputs):
            raise LookupError("lost track")
        return result

    monkeypatch.setattr(Submission, "result", faulty)
    good, bad, fine = omni.generate(["good", "bad", "fine"], output_modalities=["text"], use_tqdm=False)
    assert (good.text, fine.text) == ("good", "fine")
    assert bad.failure is not None
    assert (bad.failure.code, bad.failure.message) == ("engine_error", "LookupError: lost track")
    assert omni.session.producer.connection.metrics.errors.labels(where="omni")._value.get() == 1


def test_prompts_wait_for_their_turn_when_the_pipeline_is_full(omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    full = iter([True, True, False])
    producer = omni.session.producer
    submit = producer.submit

    async def at_first_full(*arguments: Any, rid: str) -> Submission:
        if next(full, False):
            raise Overloaded(retry_after=0.01)
        return await submit(*arguments, rid=rid)

    monkeypatch.setattr(producer, "submit", at_first_full)
    assert [one.text for one in omni.generate(["a", "b"], output_modalities=["text"])] == ["a", "b"]


def test_prompts_run_when_all_stages_are_left_to_workers_elsewhere(omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = tuple(msgspec.structs.replace(stage, num_replicas=0) for stage in omni.spec.stages)
    monkeypatch.setattr(omni.session, "spec", msgspec.structs.replace(omni.spec, stages=stages))
    assert [one.text for one in omni.generate(["a", "b"], output_modalities=["text"])] == ["a", "b"]


def test_everything_open_is_aborted_when_the_caller_interrupts(omni: Omni) -> None:
    prompts = [Request(prompt="w", sampling_params={"writer": {"tokens": 2000}})] * 20
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background processes without it
    timer = threading.Timer(1.0, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        omni.generate(prompts, output_modalities=["text"])
    assert [one.text for one in omni.generate("free", output_modalities=["text"])] == ["free"]
    assert omni.session._open == {}


def test_nothing_is_run_when_a_prompt_cannot_be_served(omni: Omni) -> None:
    with pytest.raises(EmptyPrompt):
        omni.generate(["fine", ""])
    with pytest.raises(UnsupportedModality):
        omni.generate("x", output_modalities=["smell"])
    for prompt in (None, 5, [None]):
        with pytest.raises(InvalidRequest, match="a prompt is a text"):
            omni.generate(prompt)


def test_bar_counts_prompts_on_a_terminal() -> None:
    screen = io.StringIO()
    with Bar(2, visible=True, console=Console(file=screen, force_terminal=True, width=100)) as bar:
        bar.count()
        bar.count(failed=True)
    assert "2/2" in screen.getvalue()
    assert "1 failed" in screen.getvalue()


def test_bar_is_silent_when_it_is_not_wanted() -> None:
    screen = io.StringIO()
    with Bar(1, visible=False, console=Console(file=screen, force_terminal=True)) as bar:
        bar.count()
    assert screen.getvalue() == ""


def test_cluster_is_found_by_the_environment(cluster: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIBUS_NATS_URL", cluster.nats_url)
    with Omni() as omni:
        assert omni.spec.name == "facade"
        assert omni.generate("x", output_modalities=["text"])[0].text == "x"


def test_unknown_pipeline_is_refused(cluster: Serving) -> None:
    with pytest.raises(PipelineError, match="not deployed"):
        Omni("nothing-like-it", nats=cluster.nats_url)


def test_argument_is_refused_when_a_pipeline_has_no_use_for_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="'tensor_paralel_size' is not an argument"):
        Omni(str(write_pipeline(tmp_path, PIPELINE)), tensor_paralel_size=2)


async def test_every_output_comes_when_it_is_ready(async_omni: AsyncOmni) -> None:
    outputs = [one async for one in async_omni.generate("one two", output_modalities=["text", "image"])]
    assert [(one.final_output_type, one.finished) for one in outputs] == [("text", False), ("image", True)]


async def test_text_is_streamed_when_asked(async_omni: AsyncOmni) -> None:
    pieces = [one async for one in async_omni.generate("a b c d", output_modalities=["text"], stream=True)]
    assert "".join(one.delta for one in pieces) == "a b c d" == pieces[-1].text
    assert len(pieces) > 2


async def test_many_requests_run_side_by_side(async_omni: AsyncOmni) -> None:
    async def ask(number: int) -> str:
        return [one.text async for one in async_omni.generate(f"n {number}", output_modalities=["text"])][-1]

    assert await asyncio.gather(*map(ask, range(20))) == [f"n {number}" for number in range(20)]


async def test_failure_is_raised(async_omni: AsyncOmni) -> None:
    with pytest.raises(EngineRejected):
        [one async for one in async_omni.generate("x", "reject-async", output_modalities=["text"])]


async def test_request_is_aborted_when_its_reader_leaves(async_omni: AsyncOmni, cluster: Serving) -> None:
    slow = [{"tokens": 2000}, None, None, None]
    async with aclosing(async_omni.generate("w", "left", slow, output_modalities=["text"], stream=True)) as outputs:
        async for _ in outputs:
            break
    (aborted,) = await async_omni.abort("left")
    assert aborted.state is RequestState.CANCELLED


async def test_request_is_aborted_when_its_reader_leaves_while_it_is_submitted(
    async_omni: AsyncOmni, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted, producer = threading.Event(), async_omni.session.producer
    submit = producer.submit

    async def never_heard_back(*arguments: Any, **more: Any) -> None:
        await submit(*arguments, **more)
        accepted.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(producer, "submit", never_heard_back)
    slow = [{"tokens": 2000}, None, None, None]
    reading = asyncio.create_task(anext(async_omni.generate("w", "way-in", slow, output_modalities=["text"])))
    assert await asyncio.to_thread(accepted.wait, 10)
    reading.cancel()
    await asyncio.wait({reading}, timeout=10)
    assert reading.cancelled()

    async def is_cancelled() -> bool:
        result = await async_omni.run_async(producer.result("facade", "way-in"))
        return result.state is RequestState.CANCELLED

    await eventually(is_cancelled, what="nobody has the outputs any more")


async def test_nothing_is_aborted_when_the_id_of_another_request_is_given(async_omni: AsyncOmni) -> None:
    slow = [{"tokens": 2000}, None, None, None]
    async with aclosing(async_omni.generate("w", "taken", slow, output_modalities=["text"], stream=True)) as outputs:
        await anext(outputs)
        with pytest.raises(RequestConflict):
            await anext(async_omni.generate("x", "taken", output_modalities=["text"]))
        assert not (await anext(outputs)).finished


async def test_reader_gets_the_partial_text_when_its_request_is_aborted(async_omni: AsyncOmni) -> None:
    """Parity: abort returns the partial text."""
    slow, seen = [{"tokens": 2000}, None, None, None], []
    async for output in async_omni.generate("word", "stopped", slow, output_modalities=["text"], stream=True):
        seen.append(output)
        if len(seen) == 3:
            await async_omni.abort(["stopped"])
    assert seen[-1].finish_reason == "abort"
    assert seen[-1].text == "".join(one.delta for one in seen[:-1])


async def test_cluster_is_paused_and_resumed(async_omni: AsyncOmni) -> None:
    await async_omni.pause_generation()
    assert await async_omni.is_paused()
    reading = asyncio.create_task(anext(async_omni.generate("x", output_modalities=["text"])))
    await asyncio.wait({reading}, timeout=0.3)
    assert not reading.done()
    await async_omni.resume_generation()
    assert (await reading).text == "x"


async def test_accepted_requests_go_on_when_the_facade_is_closed(cluster: Serving, async_omni: AsyncOmni) -> None:
    async with AsyncOmni(nats=cluster.nats_url) as brief:
        await brief.run_async(brief.session.add_request("outlives", "one two three", final_stage_id=0))

    async def done() -> bool:
        session = async_omni.session
        result = await async_omni.run_async(session.producer.result("facade", "outlives"))
        return result.state is RequestState.DONE

    await eventually(done)


async def test_loop_stays_free_while_a_facade_lives_on_the_same_server(connection: Connection, pipeline: str) -> None:
    """A façade beside replicas in one process: they share nothing but the broker."""
    spec = PipelineSpec(name=pipeline, stages=(sim(0, final="text"),))
    await deploy_pipeline(connection, spec)
    async with served_here(connection, spec):
        made = await asyncio.to_thread(AsyncOmni, pipeline, nats=connection.url)
        async with made:
            assert [one.text async for one in made.generate("hi")] == ["hi"]
