"""Requests that kill whatever process runs them: each takes down as many replicas as it is allowed attempts, and no more."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from omnibus.client.producer import Producer
from omnibus.errors import AttemptsExhausted
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.requests.state import RequestState
from omnibus.wire.request import Request
from tests.support.cluster import Cluster
from tests.support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

POISON = ("processor ends the process", "ends the process", "is killed, as for its memory")
ATTEMPTS = 2


def spec() -> PipelineSpec:
    """One slot a replica: who shares a replica with poison shares its death, and loses an attempt."""
    stages = (
        StageSpec(
            stage_id=0, name="first", engine="python", model="tests.support.poison_stage:first",
            input_processor="tests.support.poison_stage:process", engine_args={"outputs": {"value": "value"}},
        ),
        StageSpec(
            stage_id=1, name="second", engine="python", model="tests.support.poison_stage:second",
            input_sources=(0,), final_output=True, final_output_type="image", engine_args={"outputs": {"image": "image"}},
        ),
    )  # fmt: skip
    return PipelineSpec(name="poison", stages=stages, max_attempts=ATTEMPTS, deadline=120.0, heartbeat_timeout=5.0)


async def test_poison_takes_down_no_more_replicas_than_its_attempts(tmp_path: Path) -> None:
    async with (
        Cluster(tmp_path / "cluster", spec(), replicas={0: 2}) as cluster,
        Producer(cluster.connection) as producer,
    ):
        states: list[RequestState] = []

        async def others() -> None:
            while True:
                submission = await producer.submit(cluster.spec, Request(prompt="fine"))
                states.append((await submission.result()).state)

        flow = asyncio.create_task(others())
        try:
            for number, prompt in enumerate(POISON):
                await producer.submit(cluster.spec, Request(prompt=prompt), rid=f"poison-{number}")
            ended = [await producer.wait("poison", f"poison-{number}") for number in range(len(POISON))]
            seen = len(states)
            await eventually(lambda: len(states) > seen + 2 or flow.done(), 60, what="others go on")
        finally:
            flow.cancel()
            await asyncio.wait({flow})
        for result in ended:
            assert result.failure is not None
            assert (result.state, result.failure.code) == (RequestState.FAILED, AttemptsExhausted.code)
            assert result.failure.attempts == ATTEMPTS
        assert set(states) == {RequestState.DONE}
        assert deaths(cluster) == len(POISON) * ATTEMPTS


def deaths(cluster: Cluster) -> int:
    return sum(log.read_text().count("replica.restarting") for log in cluster.folder.rglob("*.log"))
