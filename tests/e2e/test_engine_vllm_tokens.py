"""The vLLM engine without a tokenizer, as a talker has it: ids and embeddings in, ids out; and its death."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
import transformers

from omnibus.errors import EngineDead, EngineRejected
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.request import Message
from omnibus.workers.engines.protocol import EngineInput, Finished, TextDelta
from omnibus.workers.engines.vllm.engine import VllmEngine
from tests.support import tiny_checkpoints
from tests.support.jobs import make_job, run_job
from tests.support.processes import children_of

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
    # vLLM and torch use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*torch.distributed.reduce_op.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]
PROMPT = [20, 5, 9, 33]
GREEDY = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.make_llm(tmp_path_factory.mktemp("talker"), tokenizer=False)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> transformers.Qwen3ForCausalLM:
    torch.set_num_threads(1)  # the engines need the cores
    return transformers.Qwen3ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(checkpoint: Path) -> AsyncIterator[VllmEngine]:
    arguments = {"skip_tokenizer_init": True, "enable_prompt_embeds": True, "interleaved": True}
    engine = VllmEngine(
        StageSpec(stage_id=2, name="talker", engine="vllm", model=str(checkpoint), slots=8, engine_args=arguments)
    )
    await engine.start()
    yield engine
    await engine.close()
    gc.collect()  # while the filters above hold: vLLM leaves a ZeroMQ context to the collector


async def test_ids_alone_come_out_when_there_is_no_tokenizer(engine: VllmEngine) -> None:
    deltas, last = await run_job(engine, make_job(token_ids=PROMPT, sampling=GREEDY))

    assert engine.outputs == {"token_ids": "tokens"}
    assert last.outputs.keys() == {"token_ids"}
    assert [token for delta in deltas for token in delta.token_ids] == last.outputs["token_ids"]
    assert {delta.text for delta in deltas} == {""}


async def test_generation_ends_at_the_end_token_of_the_checkpoint(engine: VllmEngine, reference) -> None:
    biased = {**GREEDY, "ignore_eos": False, "logit_bias": {str(tiny_checkpoints.END_ID): 100.0}, "min_tokens": 3}

    _, last = await run_job(engine, make_job(token_ids=PROMPT, sampling=biased))

    assert (len(last.outputs["token_ids"]), last.finish_reason) == (4, "stop")


async def test_embeddings_of_a_prompt_do_what_its_tokens_do(engine: VllmEngine, reference) -> None:
    embeds = reference.get_input_embeddings()(torch.tensor(PROMPT)).detach().numpy()
    embeds.flags.writeable = False

    _, by_ids = await run_job(engine, make_job(token_ids=PROMPT, sampling=GREEDY))
    _, by_embeds = await run_job(engine, make_job(embeds=embeds, sampling=GREEDY))

    assert by_embeds.outputs["token_ids"] == by_ids.outputs["token_ids"]
    assert by_embeds.usage == by_ids.usage


async def test_each_part_is_answered_before_the_next_is_read_when_input_and_output_are_interleaved(
    engine: VllmEngine, reference
) -> None:
    words, told, opening = [[20, 5], [9], [33, 7]], list[int](), list[int]()

    async def parts() -> AsyncGenerator[EngineInput, None]:
        for number, word in enumerate(words):
            assert len(told) == 4 * number, "the part before is answered"
            yield EngineInput(token_ids=word)

    expected, context = list[int](), list[int]()
    for word in words:
        prompt = torch.tensor([[*context, *word]])
        limits = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 4, "min_new_tokens": 4}
        answered = reference.generate(prompt, do_sample=False, **limits)
        context = answered[0].tolist()
        expected += context[-4:]

    job = make_job(sampling={**GREEDY, "max_tokens": 4}, parts=parts())
    async with aclosing(engine.generate(job)) as items:
        async for item in items:
            if isinstance(item, TextDelta):
                opening += [len(told)] if item.is_opening else []
                told += item.token_ids
            else:
                last = item

    assert (told, opening) == (expected, [0, 4, 8])
    assert isinstance(last, Finished)
    assert (last.outputs["token_ids"], last.usage.prompt_tokens, last.segments) == (expected, 5, ())


async def test_input_without_a_part_is_refused_when_it_is_interleaved(engine: VllmEngine) -> None:
    async def parts() -> AsyncGenerator[EngineInput, None]:
        return
        yield EngineInput()

    with pytest.raises(EngineRejected, match="no part"):
        await run_job(engine, make_job(sampling=GREEDY, parts=parts()))


async def test_same_tokens_when_the_seed_is_the_same(engine: VllmEngine) -> None:
    async def sampled(seed: int) -> list[int]:
        sampling = {"temperature": 1.0, "seed": seed, "max_tokens": 24, "ignore_eos": True}
        _, last = await run_job(engine, make_job(token_ids=PROMPT, sampling=sampling))
        return last.outputs["token_ids"]

    assert await sampled(3) == await sampled(3)
    assert await sampled(3) != await sampled(4)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"text": "words"}, "prompt"),
        ({"messages": (Message(role="user", content="words"),)}, "prompt"),
        ({"token_ids": [64]}, "token_ids"),
        ({"embeds": np.zeros((3, 65), np.float32)}, "embeds"),
        ({"embeds": np.zeros((3, 64), np.int64)}, "embeds"),
    ],
)
async def test_rejected_when_the_input_does_not_suit(engine: VllmEngine, given, param) -> None:
    with pytest.raises(EngineRejected) as caught:
        await run_job(engine, make_job(**given))

    assert caught.value.param == param


async def test_core_computes_at_a_lower_priority_than_the_replica(engine: VllmEngine) -> None:
    assert engine.dead() is None
    (core,) = children_of(os.getpid(), "EngineCore")
    assert os.getpriority(os.PRIO_PROCESS, core) == 10
    assert os.getpriority(os.PRIO_PROCESS, 0) < 10


# The last test: it leaves a dead engine behind.
async def test_engine_dead_when_its_core_is_killed(engine: VllmEngine, caplog: pytest.LogCaptureFixture) -> None:
    generated = engine.generate(make_job("mourner", {**GREEDY, "max_tokens": 120}, token_ids=PROMPT))
    assert isinstance(await anext(generated), TextDelta)

    for pid in children_of(os.getpid(), "EngineCore"):
        os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(2):
        with pytest.raises(EngineDead):
            async for _ in generated:
                pass

    assert isinstance(engine.dead(), EngineDead)
    with pytest.raises(EngineDead):
        await run_job(engine, make_job(token_ids=PROMPT))
    await engine.abort("mourner")
    caplog.clear()  # the traceback that vLLM logs holds the dead engine
