"""Bundles in the vLLM engine: their members are requests side by side in one batch, and leave it together."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from omnibus.errors import ContextExceeded
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.bundle import items_of
from omnibus.workers.engines.protocol import EngineStats
from omnibus.workers.engines.vllm.engine import VllmEngine
from tests.support import tiny_checkpoints
from tests.support.jobs import make_bundle, make_job, run_job

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
    # vLLM and torch use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*torch.distributed.reduce_op.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]
PROMPT = "draw a red circle"
CONTEXT = 128
GREEDY = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    """One slot, and so by default room for a prompt and one companion."""
    checkpoint: Path = tiny_checkpoints.make_llm(tmp_path_factory.mktemp("llm"))
    arguments = {"hidden_states": [0, 2]}
    engine = VllmEngine(
        StageSpec(
            stage_id=0, name="llm", engine="vllm", model=str(checkpoint), slots=1, engine_args=arguments,
            prompt_expand="omnibus.presets.companions:negative_prompt",
        )
    )  # fmt: skip
    await engine.start()
    yield engine
    await engine.close()
    gc.collect()  # while the filters above hold: vLLM leaves a ZeroMQ context to the collector


async def test_members_of_a_bundle_run_side_by_side_and_make_what_each_makes_alone(engine: VllmEngine) -> None:
    prompt, negative = (make_job("bundle", GREEDY, text=text) for text in (PROMPT, "a blue square above"))
    alone = [(await run_job(engine, job))[1] for job in (prompt, negative)]
    assert engine._model._llm.vllm_config.scheduler_config.max_num_seqs == 2
    most, bundle = 0, items_of(engine, make_bundle(prompt, negative=negative))
    async with aclosing(bundle) as items:
        async for item in items:
            most, last = max(most, len(engine._model._runs)), item
    assert most == 2
    for outputs, wanted in zip((last.outputs, last.companions["negative"]), alone, strict=True):
        assert outputs["token_ids"] == wanted.outputs["token_ids"]
        np.testing.assert_allclose(outputs["hidden_states"], wanted.outputs["hidden_states"], atol=1e-4)
    counts = [one.usage for one in alone]
    assert last.usage.prompt_tokens == sum(one.prompt_tokens for one in counts)
    assert last.usage.completion_tokens == sum(one.completion_tokens for one in counts)


@pytest.mark.parametrize("how", ["close", "abort", "refuse"])
async def test_every_member_is_gone_from_the_engine_when_its_bundle_ends_early(engine: VllmEngine, how: str) -> None:
    long = {**GREEDY, "max_tokens": 110}
    refused = make_job("bundle", {"max_tokens": 5}, token_ids=[1] * (2 * CONTEXT))
    negative = refused if how == "refuse" else make_job("bundle", long, text="a blue square")
    bundle = items_of(engine, make_bundle(make_job("bundle", long, text=PROMPT), negative=negative))
    if how == "refuse":
        with pytest.raises(ContextExceeded, match="companion 'negative'"):
            [item async for item in bundle]
    else:
        await anext(bundle)
        if how == "close":
            await bundle.aclose()
        else:
            await engine.abort("bundle")
            last = [item async for item in bundle][-1]
            assert (last.finish_reason, last.companions) == ("abort", {})
    assert engine.stats() == EngineStats()
    assert engine._model._llm.get_num_unfinished_requests() == 0
