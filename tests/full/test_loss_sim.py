"""Nothing accepted is lost: every process of a served pipeline is killed with -9 in turn, under load over both doors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from omnibus.requests.state import RequestState
from omnibus.workers.engines.sim import expected_text
from tests.support.cluster import Cluster, pipeline_of
from tests.support.load import Load

pytestmark = pytest.mark.integration

PIPELINE = """
name: chain
deadline: 60s
heartbeat_timeout: 2s
stages:
- {stage_id: 0, name: first, engine: sim, slots: 8, engine_args: {latency: [0.01, 0.05]}}
- {stage_id: 1, name: side, engine: sim, slots: 16, input_sources: [0], engine_args: {latency: [0.0, 0.1]}}
- {stage_id: 2, name: join, engine: sim, slots: 8, input_sources: [0, 1], final_output: true, final_output_type: text,
   engine_args: {latency: 0.01}}
edges:
- {source: 0, target: 1, forwarding: direct}
"""
BETWEEN = 60
"""Requests that must end between two kills: each kill then hits a system at work."""


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path / "cluster", pipeline_of(tmp_path, PIPELINE), replicas={0: 2}) as running:
        yield running


async def test_every_accepted_request_ends_once_when_each_process_is_killed_in_turn(cluster: Cluster) -> None:
    async with Load(cluster.connection, cluster.spec, cluster.url) as load:
        await load.more(BETWEEN)
        await cluster.kill_replica(0)
        await load.more(BETWEEN)
        await cluster.kill("orchestrator")
        await cluster.orchestrator()
        await load.more(BETWEEN)
        await cluster.kill("frontdoor")
        await cluster.front_door()
        await load.more(BETWEEN)
        await cluster.kill_nats(outage=0.5)
        await load.more(BETWEEN)
        await cluster.kill_replica(2)
        await load.more(BETWEEN)
        load.finish()
    results = await load.results()
    assert len(results) > 6 * BETWEEN
    assert {result.state for result in results.values()} == {RequestState.DONE}
    said = {rid: result.outputs[0].text for rid, result in results.items()}
    assert said == {rid: expected_text(prompt) for rid, prompt in load.prompts.items()}
    assert load.answers == {rid: said[rid] for rid in load.answers}
    await load.check_ended_once()
    await load.check_nothing_queued()
