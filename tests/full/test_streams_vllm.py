"""A real LLM in two processes: the one that streams is killed with -9, and the client reads one whole text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.support.cluster import Cluster, pipeline_of
from tests.support.runners import Runners
from tests.support.sse import Stream, streamed

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

THINKER = """
name: thinker
deadline: 200s
heartbeat_timeout: 10s
stages:
- stage_id: 0
  name: thinker
  engine: vllm
  model: package:omnibus.omni_tiny/checkpoints/thinker
  final_output: true
  final_output_type: text
  slots: 4
  input_processor: omnibus.omni_tiny.processors:thinker_input
  env: {OMP_NUM_THREADS: "1", VLLM_CPU_OMP_THREADS_BIND: nobind, HF_HUB_OFFLINE: "1"}
  engine_args: {dtype: float32, enforce_eager: true, max_model_len: 256, max_num_seqs: 4, max_num_batched_tokens: 256,
                kv_cache_memory_bytes: 33554432, hidden_states: [0, 2]}
"""
PROMPT = "a red circle left of a blue square"
LENGTH = 200
"""Tokens: the thinker's own answers are short, so its end of text is ruled out until there are so many."""
UNDISTURBED: dict[str, Any] = {"max_tokens": LENGTH, "min_tokens": LENGTH}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("thinker")
    async with Cluster(folder / "cluster", pipeline_of(folder, THINKER), replicas={0: 2}, ready=240.0) as running:
        yield running


async def test_greedy_text_goes_on_elsewhere_at_once_and_is_the_undisturbed_one_when_its_replica_is_killed(
    cluster: Cluster,
) -> None:
    stream = await disturbed(cluster, {"temperature": 0.0})
    assert stream.longest_pause() < cluster.spec.heartbeat_timeout / 2, "given back by the lease alone"


async def test_seeded_text_is_the_undisturbed_one_when_its_replica_is_killed(cluster: Cluster) -> None:
    await disturbed(cluster, {"temperature": 1.0, "seed": 5})


async def disturbed(cluster: Cluster, sampling: dict[str, Any]) -> Stream:
    """Kill the replica in mid-stream, and check that the client cannot tell."""
    await cluster.wait_up()
    async with (
        httpx.AsyncClient(base_url=cluster.url, timeout=150.0) as http,
        Runners(cluster.connection, cluster.spec.name, cluster.view) as runners,
    ):
        whole = await read(http, sampling)
        async with streamed(http, cluster.spec.name, PROMPT, **UNDISTURBED, **sampling) as stream:
            await stream.read_to(len(whole.text) // 5)
            before = len(stream.pieces)
            killed = await runners.kill(0, stream.rid)
            await stream.read()
    after = [at for at, _ in stream.pieces[before:] if at > killed]
    assert len(after) > 3, "the text was nearly complete before the kill"
    assert stream.text == whole.text
    assert (stream.done, stream.finish_reason, stream.usage) == (True, whole.finish_reason, whole.usage)
    assert whole.usage is not None
    assert whole.usage["completion_tokens"] == LENGTH
    print(f"{sampling}: {1000 * stream.longest_pause(killed):.0f} ms without text after the kill")
    return stream


async def read(http: httpx.AsyncClient, sampling: dict[str, Any]) -> Stream:
    """The answer when nothing happens."""
    async with streamed(http, "thinker", PROMPT, **UNDISTURBED, **sampling) as stream:
        await stream.read()
    return stream
