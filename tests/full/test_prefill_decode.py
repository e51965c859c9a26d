"""KV from a prefill stage to a decode stage through the broker's queues: what dies, what is lost, what stays."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from omnibus.client.producer import Producer
from omnibus.client.request_events import Result
from omnibus.payloads.host import SHARED_MEMORY
from omnibus.requests.state import RequestState
from omnibus.wire.payload import MemorySlot
from omnibus.wire.request import Request
from tests.integration.test_durable_tasks import queued_task
from tests.support.cluster import Cluster
from tests.support.load import Load
from tests.support.memory import shared_memory
from tests.support.prefill_decode import DECODE, PREFILL, prefill_decode
from tests.support.processes import is_running
from tests.support.waiting import eventually
from tools.omni_tiny.grading import grade_text
from tools.omni_tiny.grammar import sample_prompts

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.asyncio(loop_scope="module")]

PROMPTS = sample_prompts(32, seed=5, held_out=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    spec = prefill_decode(f"halves-{secrets.token_hex(3)}", deadline=400.0)
    async with Cluster(tmp_path_factory.mktemp("halves") / "cluster", spec, ready=240.0) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def producer(cluster: Cluster) -> AsyncIterator[Producer]:
    async with Producer(cluster.connection) as made:
        yield made


async def nothing_stays(cluster: Cluster) -> None:
    await eventually(lambda: not shared_memory(cluster.spec.name), 30.0, what="no KV is left in shared memory")


def is_right(prompt: str, result: Result) -> bool:
    text = result.output("text")
    return result.state is RequestState.DONE and text is not None and bool(grade_text(prompt, text.text))


async def test_kv_travels_in_shared_memory_and_is_freed_at_the_end(cluster: Cluster, producer: Producer) -> None:
    submission = await producer.submit(cluster.spec, Request(prompt=PROMPTS[0]))
    result = await submission.result()

    assert is_right(PROMPTS[0], result)
    prefill, decode = sorted(result.timings, key=lambda one: one.stage_id != PREFILL)
    assert (prefill.hosted, prefill.stored) == (2, 0)
    assert prefill.bytes_out == decode.bytes_in > 32 * 1024
    output = result.output("text")
    assert output is not None
    assert output.usage.cached_tokens == output.usage.prompt_tokens - 1
    await nothing_stays(cluster)


async def test_request_runs_again_when_its_kv_is_gone(cluster: Cluster, producer: Producer) -> None:
    """The decode stage computes no prompt: the whole request has another run."""
    await cluster.stop(f"worker-{DECODE}")
    submission = await producer.submit(cluster.spec, Request(prompt=PROMPTS[1]))
    task = await queued_task(cluster.connection, cluster.spec.name, DECODE, submission.rid)
    (slot,) = task.inputs[PREFILL]["kv"].locations
    assert isinstance(slot, MemorySlot)
    (SHARED_MEMORY / slot.name).unlink()
    await cluster.worker(DECODE)

    result = await submission.result()

    assert is_right(PROMPTS[1], result)
    assert result.run == 2
    await nothing_stays(cluster)


async def test_kv_is_freed_when_its_request_is_cancelled_before_it_is_read(
    cluster: Cluster, producer: Producer
) -> None:
    await cluster.stop(f"worker-{DECODE}")
    submission = await producer.submit(cluster.spec, Request(prompt=PROMPTS[2]))
    await queued_task(cluster.connection, cluster.spec.name, DECODE, submission.rid)
    assert shared_memory(cluster.spec.name)

    await producer.cancel(cluster.spec.name, submission.rid)

    await nothing_stays(cluster)
    await cluster.worker(DECODE)
    await cluster.wait_up()


async def test_every_text_is_right_and_ends_once_when_either_side_is_killed(cluster: Cluster) -> None:
    load = Load(
        cluster.connection, cluster.spec, cluster.url, http_callers=3, raw_pause=1.0, modalities=("text",), within=440.0,
        prompt=lambda number: PROMPTS[number % len(PROMPTS)],
    )  # fmt: skip
    async with load:
        await load.more(4)
        for stage_id in (PREFILL, DECODE, PREFILL, DECODE):
            await cluster.kill_replica(stage_id)
            await load.more(4)
        load.finish()
    results = await load.results()
    assert not [rid for rid, result in results.items() if not is_right(load.prompts[rid], result)]
    await load.check_ended_once()
    await load.check_nothing_queued()
    await nothing_stays(cluster)
    await eventually(lambda: not abandoned_folders(), 60.0, what="folders of killed engines are removed by the next")


def abandoned_folders() -> list[Path]:
    found = Path(tempfile.gettempdir()).glob("omnibus-engine-*")
    return [folder for folder in found if not is_running(int(folder.name.split("-")[2]))]
