"""LoRA adapters and the profiler on a running vLLM, beside transformers' own computation of the same weights."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
import transformers

from omnibus.errors import EngineRejected
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.vllm.engine import VllmEngine
from tests.support import tiny_checkpoints
from tests.support.greedy import greedy_ids
from tests.support.jobs import make_job, run_job
from tests.support.tiny_adapter import adapted, make_adapter

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_scope="module"),
    # vLLM and torch use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*torch.distributed.reduce_op.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]
PROMPT = [6, 5, 20, 9]
GREEDY = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str | None, transformers.Qwen3ForCausalLM]:
    """The model by the name of its adapter; None: without one."""
    torch.set_num_threads(1)  # the engine needs the cores
    checkpoint = tiny_checkpoints.make_llm(folder / "llm")
    base = transformers.Qwen3ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    adapters = {name: make_adapter(folder / name, base, seed=seed) for seed, name in enumerate(("pirate", "poet"))}
    return {None: base, **{name: adapted(checkpoint, adapter) for name, adapter in adapters.items()}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path, models: object) -> AsyncIterator[VllmEngine]:
    arguments = {
        "lora_modules": {name: str(folder / name) for name in ("pirate", "poet")},
        "max_loras": 2,
        "profiler_config": {"profiler": "torch", "torch_profiler_dir": str(folder / "profile")},
    }
    engine = VllmEngine(
        StageSpec(stage_id=0, name="llm", engine="vllm", model=str(folder / "llm"), slots=8, engine_args=arguments)
    )
    await engine.start()
    yield engine
    await engine.close()
    gc.collect()  # while the filters above hold: vLLM leaves a ZeroMQ context to the collector


async def test_each_gets_the_tokens_of_its_adapter_when_they_run_at_once(
    engine: VllmEngine, models: dict[str | None, transformers.Qwen3ForCausalLM]
) -> None:
    jobs = [make_job(f"lora-{name}", GREEDY, token_ids=PROMPT, lora=name) for name in models]

    answers = await asyncio.gather(*(run_job(engine, job) for job in jobs))

    said = [last.outputs["token_ids"] for _, last in answers]
    assert said == [greedy_ids(model, PROMPT, 12) for model in models.values()]
    assert len({tuple(tokens) for tokens in said}) == len(models)


async def test_a_name_is_what_was_deployed_last_when_adapters_changed_while_the_engine_started(
    engine: VllmEngine, models: dict[str | None, transformers.Qwen3ForCausalLM], folder: Path
) -> None:
    async def said(name: str) -> list[int]:
        _, last = await run_job(engine, make_job(f"set-{name}", GREEDY, token_ids=PROMPT, lora=name))
        tokens: list[int] = last.outputs["token_ids"]
        return tokens

    declared = {name: str(folder / name) for name in ("pirate", "poet")}
    await engine.rpc("set_adapters", [{"pirate": declared["pirate"]}, {"pirate": declared["poet"]}], {})
    assert await said("pirate") == greedy_ids(models["poet"], PROMPT, 12)
    with pytest.raises(EngineRejected, match="there are: pirate"):
        await said("poet")

    await engine.rpc("set_adapters", [declared, {"poet": "/nowhere"}], {})
    assert await said("pirate") == greedy_ids(models["pirate"], PROMPT, 12)
    with pytest.raises(EngineRejected, match="/nowhere"):
        await said("poet")

    await engine.rpc("set_adapters", [declared, {}], {})
    assert await said("poet") == greedy_ids(models["poet"], PROMPT, 12)


async def test_profile_is_written_when_it_was_started_and_stopped(engine: VllmEngine, folder: Path) -> None:
    await engine.rpc("start_profile", [], {})
    await run_job(engine, make_job("profiled", GREEDY, token_ids=PROMPT))
    await engine.rpc("stop_profile", [], {})

    assert any(path.stat().st_size > 0 for path in (folder / "profile").iterdir())
