"""A vLLM stage that encodes and generates nothing, beside transformers' own computation of the same weights."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
import transformers

from omnibus.errors import EngineRejected
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.protocol import Finished
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
CONTEXT = 128
IDS = list(range(4, 40))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.make_llm(tmp_path_factory.mktemp("llm"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(checkpoint: Path) -> AsyncIterator[VllmEngine]:
    arguments = {"runner": "pooling", "convert": "embed", "max_model_len": CONTEXT}
    engine = VllmEngine(
        StageSpec(stage_id=0, name="encoder", engine="vllm", model=str(checkpoint), slots=8, engine_args=arguments)
    )
    await engine.start()
    yield engine
    await engine.close()
    gc.collect()  # while the filters above hold: vLLM leaves a ZeroMQ context to the collector


async def test_states_are_those_of_the_last_layer_after_its_norm(engine: VllmEngine, checkpoint: Path) -> None:
    torch.set_num_threads(1)  # the engine needs the cores
    before, last = await run_job(engine, make_job(token_ids=IDS))

    model = transformers.Qwen3Model.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).last_hidden_state[0].numpy()
    states = last.outputs["last_hidden_state"]
    assert before == []
    assert engine.outputs == {"last_hidden_state": "tensor"}
    assert states.dtype == np.float32
    np.testing.assert_allclose(states, expected, atol=2e-3)
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(IDS), 0)


async def test_states_are_whole_when_prompts_share_a_beginning(engine: VllmEngine) -> None:
    _, first = await run_job(engine, make_job(token_ids=IDS))
    _, longer = await run_job(engine, make_job(token_ids=[*IDS, 7, 8]))
    states = first.outputs["last_hidden_state"], longer.outputs["last_hidden_state"]
    np.testing.assert_allclose(states[1][: len(IDS)], states[0], atol=1e-4)


async def test_sampling_parameters_are_refused_when_nothing_is_sampled(engine: VllmEngine) -> None:
    with pytest.raises(EngineRejected) as refused:
        await run_job(engine, make_job(token_ids=IDS, sampling={"temperature": 0.5}))
    assert refused.value.param == "temperature"


async def test_prompt_is_refused_when_it_is_longer_than_the_context(engine: VllmEngine) -> None:
    with pytest.raises(EngineRejected, match=str(CONTEXT)):
        await run_job(engine, make_job(token_ids=[5] * (CONTEXT + 1)))


async def test_job_ends_as_aborted_when_it_is_aborted_at_once(engine: VllmEngine) -> None:
    running = asyncio.create_task(run_job(engine, make_job("gone", token_ids=IDS)), name="job")
    await asyncio.sleep(0)  # the job has begun
    await engine.abort("gone")
    _, last = await running
    assert last == Finished(outputs={}, finish_reason="abort")
