"""A prompt with a sound that one vLLM engine computes and another continues, beside one engine that does both."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from omnibus.errors import EngineError
from omnibus.media import sound
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.request import AudioPart, Message, Request, TextPart
from omnibus.workers.engines.protocol import EngineInput, Finished, Job, StageInput
from omnibus.workers.engines.vllm.engine import VllmEngine
from tests.support import tiny_listener
from tests.support.jobs import run_job

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
    # vLLM and torch use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]
GREEDY = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[VllmEngine, ...]]:
    """A prefill and a decode engine, and one that does both."""
    checkpoint = tiny_listener.make_listener(tmp_path_factory.mktemp("listener"))
    made = tuple(VllmEngine(stage(checkpoint, number, role)) for number, role in enumerate(("prefill", "decode", None)))
    for engine in made:
        await engine.start()
    yield made
    await asyncio.gather(*(engine.close() for engine in made))
    gc.collect()  # while the filters above hold: vLLM leaves a ZeroMQ context to the collector


def stage(checkpoint: Path, number: int, role: str | None) -> StageSpec:
    arguments: dict[str, Any] = {"dtype": "float32", "max_model_len": 2048, "kv_cache_memory_bytes": 64 << 20}
    if role is not None:
        arguments["role"] = role
    return StageSpec(stage_id=number, name=role or "whole", engine="vllm", model=str(checkpoint), engine_args=arguments)


def noise(seed: int) -> AudioPart:
    samples = np.random.default_rng(seed).uniform(-1, 1, 8000 + 1600 * seed).astype(np.float32)
    return AudioPart(data=sound.encoded(samples, 16_000))


def job_of(*parts: TextPart | AudioPart, sampling: dict[str, Any], **given: Any) -> Job:
    """A job of a request with a chat, as its first stage has it, or with what that gave."""
    messages = (Message(role="user", content=parts),)
    stage_input = StageInput(rid="job", request=Request(messages=messages))
    return Job(
        rid="job",
        stage_input=stage_input,
        engine_input=EngineInput(**(given or {"messages": messages})),
        sampling=sampling,
    )


async def said_by_two(engines: tuple[VllmEngine, ...], *parts: TextPart | AudioPart) -> Finished:
    prefill, decode, _ = engines
    _, computed = await run_job(prefill, job_of(*parts, sampling={}))
    given = {"token_ids": computed.outputs["token_ids"], "values": {"kv": computed.outputs["kv"]}}
    _, last = await run_job(decode, job_of(*parts, sampling=GREEDY, **given))
    return last


@pytest.mark.parametrize("seeds", [(1,), (2,), (1, 2)])
async def test_text_is_that_of_one_engine_when_another_heard_the_sounds(
    engines: tuple[VllmEngine, ...], seeds: tuple[int, ...]
) -> None:
    parts = (TextPart(text="hear"), *map(noise, seeds))
    _, whole = await run_job(engines[2], job_of(*parts, sampling=GREEDY))
    last = await said_by_two(engines, *parts)
    assert last.outputs["token_ids"] == whole.outputs["token_ids"]
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert last.usage.cached_tokens == last.usage.prompt_tokens - 1, "the decode engine hears no sound"


async def test_sounds_tell_texts_apart(engines: tuple[VllmEngine, ...]) -> None:
    texts = [await said_by_two(engines, TextPart(text="hear"), noise(seed)) for seed in (1, 2, 3)]
    assert len({tuple(one.outputs["token_ids"]) for one in texts}) > 1


async def test_refused_when_the_decode_stage_makes_another_prompt_of_the_chat(engines: tuple[VllmEngine, ...]) -> None:
    prefill, decode, _ = engines
    _, computed = await run_job(prefill, job_of(TextPart(text="hear"), noise(1), sampling={}))
    job = job_of(TextPart(text="hear"), noise(1), sampling=GREEDY, token_ids=[1], values={"kv": computed.outputs["kv"]})
    other = (Message(role="user", content=(TextPart(text="look"), noise(1))),)
    job = dataclasses.replace(job, stage_input=dataclasses.replace(job.stage_input, request=Request(messages=other)))
    with pytest.raises(EngineError, match="of another prompt"):
        await run_job(decode, job)
