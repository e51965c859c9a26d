"""A prompt that one vLLM engine computes and another continues, beside transformers' own computation of the same weights."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import importlib
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
import transformers

from omnibus.errors import EngineError, EngineRejected
from omnibus.payloads.packing import packed, unpack
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.payload import MSGPACK
from omnibus.workers.engines.protocol import Finished, TextDelta
from omnibus.workers.engines.vllm.engine import VllmEngine
from omnibus.workers.engines.vllm.kv_handover import FORMAT_FILE
from tests.support import tiny_checkpoints
from tests.support.greedy import greedy_ids
from tests.support.jobs import make_job, run_job

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.asyncio(loop_scope="module"),
    # vLLM and torch use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:.*torch.distributed.reduce_op.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]
LAYERS = [0, 2]
BLOCK = 32
GREEDY = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}
LENGTHS = (1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1, 100)
"""Prompts that end before, at and after the end of a block."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.make_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> transformers.Qwen3ForCausalLM:
    torch.set_num_threads(1)  # the engines need the cores
    return transformers.Qwen3ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def halves(checkpoint: Path) -> AsyncIterator[tuple[VllmEngine, VllmEngine]]:
    """A prefill and a decode engine, started side by side."""
    roles = ("prefill", "decode")
    engines = tuple(VllmEngine(stage(checkpoint, number, role)) for number, role in enumerate(roles))
    await asyncio.gather(*(engine.start() for engine in engines))
    yield engines
    await asyncio.gather(*(engine.close() for engine in engines))
    gc.collect()  # while the filters above hold: vLLM leaves a ZeroMQ context to the collector


def stage(checkpoint: Path, number: int, role: str) -> StageSpec:
    arguments = {"role": role, "hidden_states": LAYERS, "block_size": BLOCK}
    if role == "decode":
        arguments |= {"kv_cache": [2, 0]}
    return StageSpec(stage_id=number, name=role, engine="vllm", model=str(checkpoint), slots=8, engine_args=arguments)


def prompt_of(length: int) -> list[int]:
    return [(7 * place + length) % 60 + 2 for place in range(length)]


async def handed_over(prefill: VllmEngine, prompt: Sequence[int], rid: str = "job") -> dict[str, Any]:
    """The outputs of the prefill stage, as they arrive at the next one."""
    _, last = await run_job(prefill, make_job(rid, token_ids=prompt))
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(prompt), 0)
    data = await packed(dict(last.outputs))
    return dict(unpack(data.joined(), MSGPACK))


async def continued(decode: VllmEngine, given: dict[str, Any], sampling: dict[str, Any], rid: str = "job") -> Finished:
    job = make_job(rid, sampling, token_ids=given["token_ids"], values={"kv": given["kv"]})
    deltas, last = await run_job(decode, job)
    assert [token for delta in deltas if isinstance(delta, TextDelta) for token in delta.token_ids] == last.outputs[
        "token_ids"
    ]
    return last


@pytest.mark.parametrize("length", LENGTHS)
async def test_text_and_states_are_those_of_one_engine_when_another_computed_the_prompt(
    halves, reference, length: int
) -> None:
    """The decode engine computes the last token of the prompt alone; states of the others came with the KV."""
    prefill, decode = halves
    prompt = prompt_of(length)

    last = await continued(decode, await handed_over(prefill, prompt), GREEDY)

    assert last.outputs["token_ids"] == greedy_ids(reference, prompt, 12)
    assert (last.usage.prompt_tokens, last.usage.cached_tokens) == (length, length - 1)
    fed = prompt + last.outputs["token_ids"][:-1]
    with torch.no_grad():
        expected = reference(torch.tensor([fed]), output_hidden_states=True, use_cache=True)
    for place, layer in enumerate(LAYERS):
        states = expected.hidden_states[layer][0].numpy()
        np.testing.assert_allclose(last.outputs["hidden_states"][:, place], states, atol=1e-4)
    assert last.outputs["kv_cache"].shape == (2, 2, len(fed), 1, 32)
    for place, layer in enumerate((2, 0)):
        cached = expected.past_key_values.layers[layer]
        keys_and_values = torch.stack([cached.keys[0], cached.values[0]]).transpose(1, 2).numpy()
        np.testing.assert_allclose(last.outputs["kv_cache"][place], keys_and_values, atol=1e-4)


async def test_each_gets_its_own_text_when_eight_are_handed_over_at_once(halves, reference) -> None:
    prefill, decode = halves
    prompts = [prompt_of(20 + 9 * place) for place in range(8)]

    async def one(place: int) -> list[int]:
        given = await handed_over(prefill, prompts[place], f"at-once-{place}")
        last = await continued(decode, given, GREEDY, f"at-once-{place}")
        return list(last.outputs["token_ids"])

    assert await asyncio.gather(*map(one, range(8))) == [greedy_ids(reference, prompt, 12) for prompt in prompts]


async def test_states_cover_the_text_when_a_stop_string_ends_it(halves, reference) -> None:
    prefill, decode = halves
    prompt = prompt_of(40)
    whole = await continued(decode, await handed_over(prefill, prompt), GREEDY)
    middle = whole.outputs["text"][len(whole.outputs["text"]) // 2 :][:4]

    last = await continued(decode, await handed_over(prefill, prompt), {**GREEDY, "stop": [middle]})

    assert last.finish_reason == "stop"
    fed = prompt + last.outputs["token_ids"][:-1]
    with torch.no_grad():
        expected = reference(torch.tensor([fed]), output_hidden_states=True).hidden_states
    np.testing.assert_allclose(last.outputs["hidden_states"][:, 1], expected[2][0].numpy(), atol=1e-4)
    np.testing.assert_allclose(last.outputs["kv_cache"], whole.outputs["kv_cache"][:, :, : len(fed)], atol=1e-4)


async def test_text_goes_on_after_what_was_received_when_a_decode_engine_died(halves, reference) -> None:
    prefill, decode = halves
    prompt = prompt_of(45)
    expected = greedy_ids(reference, prompt, 12)
    given = await handed_over(prefill, prompt)
    job = make_job("again", GREEDY, token_ids=given["token_ids"], values={"kv": given["kv"]})

    _, last = await run_job(decode, dataclasses.replace(job, received=tuple(expected[:5])))

    assert last.outputs["token_ids"] == expected
    assert last.usage.cached_tokens == 45


def transfer_files() -> list[Path]:
    """The files through which engines and their EngineCores hand something over, but for the description."""
    folders = Path(tempfile.gettempdir()).glob(f"omnibus-engine-{os.getpid()}-*")
    return [file for folder in folders for file in folder.iterdir() if file.name != FORMAT_FILE]


async def test_no_file_is_left_when_jobs_end_are_aborted_or_closed(halves) -> None:
    prefill, decode = halves
    given = await handed_over(prefill, prompt_of(60))
    long = make_job("aborted", {**GREEDY, "max_tokens": 60}, token_ids=given["token_ids"], values={"kv": given["kv"]})
    async for item in decode.generate(long):
        if isinstance(item, TextDelta):
            await decode.abort("aborted")
    async with aclosing(decode.generate(long)) as items:
        await anext(items)
    ended = asyncio.create_task(run_job(prefill, make_job("aborted", token_ids=prompt_of(100))))
    await asyncio.sleep(0)
    await prefill.abort("aborted")
    await ended

    assert transfer_files() == []


async def test_refused_when_the_kv_is_missing_or_of_another_prompt(halves) -> None:
    prefill, decode = halves
    given = await handed_over(prefill, prompt_of(8))

    with pytest.raises(EngineError, match="no output `kv` of a prefill stage"):
        await run_job(decode, make_job(token_ids=given["token_ids"], sampling=GREEDY))
    with pytest.raises(EngineError, match="of another prompt"):
        await run_job(decode, make_job(token_ids=prompt_of(9), values={"kv": given["kv"]}, sampling=GREEDY))


async def test_refused_when_the_blocks_of_the_kv_are_others(halves) -> None:
    prefill, decode = halves
    given = await handed_over(prefill, prompt_of(8))
    layers = {name: [16, *block[1:]] for name, block in given["kv"]["layers"].items()}

    with pytest.raises(EngineError, match=r"16 tokens of torch\.float32.*here 32 tokens"):
        await run_job(
            decode,
            make_job(token_ids=given["token_ids"], values={"kv": {**given["kv"], "layers": layers}}, sampling=GREEDY),
        )


async def test_refused_when_a_prefill_stage_is_given_parameters(halves) -> None:
    with pytest.raises(EngineRejected, match="a prefill stage takes none"):
        await run_job(halves[0], make_job(token_ids=[1, 2], sampling={"max_tokens": 3}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("isa", ["vec", "vec16"])
async def test_keys_and_values_are_read_out_whatever_the_instruction_set_packs(isa: str, dtype: torch.dtype) -> None:
    cpu_attn_reshape_and_cache = importlib.import_module("vllm._custom_ops").cpu_attn_reshape_and_cache
    tokens, heads, width = 40, 2, 64
    keys, values = torch.randn(2, tokens, heads, width).to(dtype)
    cache = torch.zeros(2, heads, 2 * BLOCK, width, dtype=dtype)
    cpu_attn_reshape_and_cache(keys, values, *cache.chunk(2, dim=2), torch.arange(tokens), isa)
    block = [BLOCK, cache[0].nbytes, str(dtype), [1, heads, BLOCK, 2 * width], isa]

    keys_and_values = importlib.import_module("omnibus.workers.engines.vllm.kv_arrays").keys_and_values
    data = cache.view(torch.uint8).flatten().numpy()
    found = keys_and_values(data, {"model.layers.7.attn": block}, tokens, [7])

    np.testing.assert_array_equal(found[0], torch.stack([keys, values]).float().numpy())
