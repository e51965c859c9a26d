"""Large outputs between stages on one host: through shared memory, whatever dies, and nothing of it stays."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from omnibus.client.producer import Producer, Submission
from omnibus.client.request_events import Result
from omnibus.payloads.host import SHARED_MEMORY
from omnibus.payloads.slot import contents_of
from omnibus.requests.state import RequestState
from omnibus.wire.payload import MemorySlot
from omnibus.wire.request import Request
from tests.integration.test_durable_tasks import queued_task
from tests.support.cluster import Cluster, pipeline_of
from tests.support.memory import shared_memory
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration

PIPELINE = """
name: {name}
deadline: 60s
heartbeat_timeout: 1s
stages:
- {stage_id: 0, name: maker, engine: python, model: "tests.support.tensor_stage:make", slots: 4,
   engine_args: {outputs: {tensor: tensor, total: json}}}
- {stage_id: 1, name: checker, engine: python, model: "tests.support.tensor_stage:check", slots: 4, input_sources: [0],
   final_output: true, final_output_type: text}
"""
LARGE = Request(prompt=str(8 << 20))


class Tensors:
    """A served pipeline whose stages are workers of their own, and a producer."""

    def __init__(self, cluster: Cluster, producer: Producer) -> None:
        self.cluster, self.producer = cluster, producer
        self.name = cluster.spec.name

    async def submit(self, request: Request = LARGE) -> Submission:
        return await self.producer.submit(self.cluster.spec, request)

    async def handed_over(self, rid: str) -> MemorySlot:
        """The slot that the queued task of the second stage refers to."""

        task = await queued_task(self.cluster.connection, self.name, 1, rid)
        (slot,) = task.inputs[0]["tensor"].locations
        assert isinstance(slot, MemorySlot)
        return slot

    async def nothing_stays(self) -> None:
        await eventually(lambda: not shared_memory(self.name), 30.0, what="no payload is left in shared memory")


@asynccontextmanager
async def tensors(folder: Path) -> AsyncIterator[Tensors]:
    spec = pipeline_of(folder, PIPELINE.replace("{name}", f"tensors-{secrets.token_hex(3)}"))
    async with Cluster(folder, spec) as cluster, Producer(cluster.connection) as producer:
        yield Tensors(cluster, producer)


def is_done(result: Result, run: int = 1) -> None:
    assert (result.state, result.run) == (RequestState.DONE, run), result.failure
    assert result.outputs[0].text == "the same 0", "the array is the same, and aligned"


async def test_array_travels_through_shared_memory_and_is_freed_at_the_end(tmp_path: Path) -> None:
    async with tensors(tmp_path) as served:
        results = await asyncio.gather(*[(await served.submit()).result() for _ in range(8)])
        for result in results:
            is_done(result)
            assert (result.timings[0].hosted, result.timings[0].stored) == (1, 0)
        await served.nothing_stays()
        for stage_id in (0, 1):
            assert await served.cluster.stop(f"worker-{stage_id}") == 0
        found = {contents_of(path) for path in SHARED_MEMORY.glob("omnibus-*")}
        assert served.name not in {held.pipeline for held in found if held is not None}, (
            "pools end with their processes"
        )


async def test_payload_is_read_when_its_producer_has_died(tmp_path: Path) -> None:
    async with tensors(tmp_path) as served:
        await served.cluster.kill("worker-1")
        submission = await served.submit()
        await served.handed_over(submission.rid)
        await served.cluster.kill("worker-0")  # its replicas die with it
        await served.cluster.worker(1)
        is_done(await submission.result())
        await served.nothing_stays()


async def test_nothing_is_lost_and_nothing_stays_when_every_worker_was_killed(tmp_path: Path) -> None:
    async with tensors(tmp_path) as served:
        await served.cluster.kill("worker-1")
        submissions = [await served.submit() for _ in range(3)]
        for submission in submissions:
            await served.handed_over(submission.rid)
        await served.cluster.kill("worker-0")
        cancelled = submissions.pop()
        await served.producer.cancel(served.name, cancelled.rid)  # nobody is there to hear of it
        assert shared_memory(served.name)
        for stage_id in (0, 1):
            await served.cluster.worker(stage_id)
        for submission in submissions:
            is_done(await submission.result())
        await served.nothing_stays()


async def test_request_runs_again_when_its_memory_is_gone(tmp_path: Path) -> None:
    async with tensors(tmp_path) as served:
        await served.cluster.kill("worker-1")
        submission = await served.submit()
        slot = await served.handed_over(submission.rid)
        (SHARED_MEMORY / slot.name).unlink()
        await served.cluster.worker(1)
        is_done(await submission.result(), run=2)
        await served.nothing_stays()


async def test_payload_goes_through_the_object_store_when_memory_is_full(tmp_path: Path) -> None:
    async with tensors(tmp_path) as served:
        await served.cluster.kill("worker-0")
        await served.cluster.worker(0, env={"OMNIBUS_SHARED_MEMORY": "1MiB"})
        result = await (await served.submit()).result()
        assert (result.state, result.timings[0].hosted, result.timings[0].stored) == (RequestState.DONE, 0, 1)
        small = await (await served.submit(Request(prompt=str(600_000)))).result()
        assert (small.state, small.timings[0].hosted, small.timings[0].stored) == (RequestState.DONE, 1, 0)
        await served.nothing_stays()
