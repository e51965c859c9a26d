"""A text that one vLLM replica began and another goes on with: the whole is what one replica alone would have said."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.protocol import Finished, Item, Job, TextDelta
from omnibus.workers.engines.vllm.engine import VllmEngine
from tests.support import tiny_checkpoints
from tests.support.jobs import make_job, run_job

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
    # vLLM and torch use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*torch.distributed.reduce_op.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]
PROMPT = "draw a red circle"
VOCABULARY = 64
GREEDY = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.make_llm(tmp_path_factory.mktemp("llm"), halves=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(checkpoint: Path) -> AsyncIterator[VllmEngine]:
    arguments = {"hidden_states": [0, 2]}
    engine = VllmEngine(
        StageSpec(stage_id=0, name="llm", engine="vllm", model=str(checkpoint), slots=8, engine_args=arguments)
    )
    await engine.start()
    yield engine
    await engine.close()
    gc.collect()  # while the filters above hold: vLLM leaves a ZeroMQ context to the collector


def job(sampling: dict[str, Any], received: tuple[int, ...] = ()) -> Job:
    return dataclasses.replace(make_job("text", sampling, text=PROMPT), received=received)


async def said(
    engine: VllmEngine, sampling: dict[str, Any], received: tuple[int, ...] = ()
) -> tuple[list[Item], Finished]:
    return await run_job(engine, job(sampling, received))


def spoken(items: list[Item]) -> str:
    return "".join(item.text for item in items if isinstance(item, TextDelta))


def assert_same(made: tuple[list[Item], Finished], whole: tuple[list[Item], Finished]) -> None:
    (items, last), (all_items, expected) = made, whole
    assert last.outputs["token_ids"] == expected.outputs["token_ids"]
    assert last.outputs["text"] == expected.outputs["text"] == spoken(items) == spoken(all_items)
    assert (last.finish_reason, last.usage) == (expected.finish_reason, expected.usage)
    ids = [token for item in items if isinstance(item, TextDelta) for token in item.token_ids]
    assert ids == expected.outputs["token_ids"]
    np.testing.assert_allclose(last.outputs["hidden_states"], expected.outputs["hidden_states"], atol=1e-4)


def first_delta(made: tuple[list[Item], Finished]) -> TextDelta:
    delta = made[0][0]
    assert isinstance(delta, TextDelta)
    return delta


@pytest.mark.parametrize(
    "more",
    [{}, {"min_tokens": 20, "ignore_eos": False}, {"repetition_penalty": 1.3}, {"allowed_token_ids": [5, 9, 30, 41]}],
    ids=["plain", "min-tokens", "repetition", "allowed"],
)
async def test_greedy_text_is_that_of_one_replica_wherever_it_was_cut(engine: VllmEngine, more: dict[str, Any]) -> None:
    whole = await said(engine, {**GREEDY, **more})
    ids = tuple(whole[1].outputs["token_ids"])
    for cut in range(1, len(ids) + 1, 3):
        made = await said(engine, {**GREEDY, **more}, ids[:cut])
        assert first_delta(made).token_ids == ids[:cut]
        assert_same(made, whole)


async def test_characters_are_whole_when_their_bytes_lie_on_both_sides_of_the_cut(engine: VllmEngine) -> None:
    halves = list(range(VOCABULARY - len(tiny_checkpoints.HALVES), VOCABULARY))
    drawing = {**GREEDY, "temperature": 1.0, "allowed_token_ids": [*halves, 5]}
    whole = await said(engine, drawing)
    ids, text = tuple(whole[1].outputs["token_ids"]), whole[1].outputs["text"]
    assert "é" in text, "no whole character was drawn"
    # All of it heard: nothing is drawn any more, and the text is what vLLM made of the same tokens as they came.
    assert_same(await said(engine, drawing, ids), whole)
    first_half = ids.index(halves[0])
    made = await said(engine, drawing, ids[: first_half + 1])
    assert text.startswith(first_delta(made).text)
    assert_same(await said(engine, drawing, tuple(made[1].outputs["token_ids"])), made)


async def test_text_ends_at_a_stop_string_that_lies_across_the_cut(engine: VllmEngine) -> None:
    free = (await said(engine, GREEDY))[1].outputs
    text, ids = free["text"], tuple(free["token_ids"])
    stop = text[len(text) // 2 - 3 : len(text) // 2 + 3]
    for included in (False, True):
        sampling = {**GREEDY, "stop": [stop], "include_stop_str_in_output": included}
        whole = await said(engine, sampling)
        assert whole[1].finish_reason == "stop"
        assert whole[1].outputs["text"].endswith(stop) is included
        for cut in range(1, len(whole[1].outputs["token_ids"]) + 1):
            assert_same(await said(engine, sampling, ids[:cut]), whole)


async def test_states_are_those_of_the_text_when_vllm_was_ahead_of_its_stop_string(engine: VllmEngine) -> None:
    free = (await said(engine, GREEDY))[1].outputs
    stopping = {**GREEDY, "stop": [free["text"][-12:-6]]}
    whole = await said(engine, stopping)
    items: list[Item | Finished] = []
    async with aclosing(engine.generate(job(stopping, tuple(free["token_ids"][:1])))) as generated:
        async for item in generated:
            items.append(item)
            time.sleep(0.3)  # noqa: ASYNC251 this loop stands still, EngineCore does not
    *made, last = items
    assert isinstance(last, Finished)
    assert_same((made, last), whole)


async def test_text_that_was_complete_is_finished_without_another_token(engine: VllmEngine) -> None:
    free = tuple((await said(engine, GREEDY))[1].outputs["token_ids"])
    stops = {**GREEDY, "stop_token_ids": [free[7]]}
    whole = await said(engine, stops)
    assert whole[1].finish_reason == "stop"
    assert_same(await said(engine, stops, tuple(whole[1].outputs["token_ids"])), whole)


async def test_seeded_text_is_made_again_and_is_the_same(engine: VllmEngine) -> None:
    seeded = {**GREEDY, "temperature": 1.0, "seed": 11}
    whole = await said(engine, seeded)
    ids = tuple(whole[1].outputs["token_ids"])
    made = await said(engine, seeded, ids[:10])
    assert first_delta(made).token_ids == ids[: len(first_delta(made).token_ids)]
    assert len(first_delta(made).token_ids) < 10
    assert_same(made, whole)


async def test_unseeded_text_goes_on_after_the_received_tokens(engine: VllmEngine) -> None:
    sampling = {**GREEDY, "temperature": 1.0}
    received = tuple((await said(engine, sampling))[1].outputs["token_ids"][:10])
    items, last = await said(engine, sampling, received)
    assert first_delta((items, last)).token_ids == received
    assert tuple(last.outputs["token_ids"][:10]) == received
    assert len(last.outputs["token_ids"]) == GREEDY["max_tokens"]
    assert last.outputs["text"] == spoken(items)


async def test_text_that_counts_its_tokens_is_made_again_and_is_the_same(engine: VllmEngine) -> None:
    counting = {**GREEDY, "frequency_penalty": 1.5}
    whole = await said(engine, counting)
    made = await said(engine, counting, tuple(whole[1].outputs["token_ids"][:10]))
    assert len(first_delta(made).token_ids) < 10
    assert_same(made, whole)


async def test_tokens_that_cannot_have_been_received_are_ignored(engine: VllmEngine) -> None:
    whole = await said(engine, GREEDY)
    assert_same(await said(engine, GREEDY, (10_000,)), whole)
    assert_same(await said(engine, GREEDY, (1,) * 100), whole)
