"""A generation cut in two beside the same one in a single engine: seeds, and a connector that the pipeline names."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.protocol import Finished
from omnibus.workers.engines.vllm.engine import VllmEngine
from tests.support import tiny_checkpoints
from tests.support.jobs import make_job, run_job

pytestmark = [
    pytest.mark.e2e,
    # vLLM and torch use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*torch.distributed.reduce_op.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]
PROMPTS = [[(7 * place + length) % 60 + 2 for place in range(length)] for length in (5, 33, 70)]
RANDOM = {"temperature": 1.0, "seed": 11, "max_tokens": 20, "ignore_eos": True, "top_p": 0.9}
PENALISED = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True, "repetition_penalty": 1.5, "min_tokens": 3}


@asynccontextmanager
async def engines(checkpoint: Path, *arguments: Mapping[str, Any]) -> AsyncIterator[list[VllmEngine]]:
    made = [
        VllmEngine(
            StageSpec(
                stage_id=number, name=f"llm{number}", engine="vllm", model=str(checkpoint), slots=4,
                engine_args={"block_size": 32, **given},
            )
        )
        for number, given in enumerate(arguments)
    ]  # fmt: skip
    await asyncio.gather(*(engine.start() for engine in made))
    try:
        yield made
    finally:
        await asyncio.gather(*(engine.close() for engine in made))
        gc.collect()  # while the filters above hold: vLLM leaves a ZeroMQ context to the collector


async def in_two(prefill: VllmEngine, decode: VllmEngine, prompt: list[int], sampling: Mapping[str, Any]) -> Finished:
    _, begun = await run_job(prefill, make_job(token_ids=prompt))
    values = {name: value for name, value in begun.outputs.items() if name != "token_ids"}
    _, last = await run_job(decode, make_job(sampling=sampling, token_ids=begun.outputs["token_ids"], values=values))
    return last


async def test_text_is_that_of_one_engine_when_it_is_random_with_a_seed_or_penalised(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoints.make_llm(tmp_path)
    async with engines(checkpoint, {}, {"role": "prefill"}, {"role": "decode"}) as made:
        whole, prefill, decode = made
        for prompt in PROMPTS:
            for sampling in (RANDOM, PENALISED):
                _, expected = await run_job(whole, make_job(sampling=sampling, token_ids=prompt))
                last = await in_two(prefill, decode, prompt, sampling)
                assert last.outputs["text"] == expected.outputs["text"]


async def test_references_are_carried_when_the_pipeline_names_a_connector(tmp_path: Path) -> None:
    """parity: kv_transfer_params. Its KV stays where that connector has it; hidden states are handed over beside it."""
    config = {
        "kv_connector": "ReferringConnector",
        "kv_connector_module_path": "tests.support.remote_kv",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(tmp_path / "kv")},
    }
    roles = ({"role": role, "kv_transfer_config": config} for role in ("prefill", "decode"))
    async with engines(tiny_checkpoints.make_llm(tmp_path / "llm"), *roles) as (prefill, decode):
        prompt = PROMPTS[2]
        _, begun = await run_job(prefill, make_job("first", token_ids=prompt))
        params = begun.outputs["kv_transfer_params"]
        greedy = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
        loaded = await in_two(prefill, decode, prompt, greedy)

    assert begun.outputs.keys() == {"token_ids", "kv_transfer_params"} == prefill.outputs.keys()
    assert params["do_remote_prefill"]
    assert params["remote_request_id"].startswith("first")
    assert loaded.usage.cached_tokens == 64, "whole blocks, as the example has them"
