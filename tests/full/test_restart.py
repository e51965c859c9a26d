"""Rolling restarts: every replica of a stage is another process in the end, and no request notices."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from omnibus.broker.connection import Connection
from omnibus.client.rolling_restart import restart_replicas
from omnibus.errors import InvalidRequest, ReplicaMissing
from omnibus.registry.deployed_pipelines import deploy_pipeline
from omnibus.requests.state import RequestState
from omnibus.workers.engines.sim import expected_text
from tests.support.cluster import Cluster, pipeline_of
from tests.support.load import Load
from tests.support.served import omnibus
from tests.support.stage_bench import stage_bench

pytestmark = pytest.mark.integration
PIPELINE = """
name: rolling
deadline: 60s
max_attempts: 1
stages:
- {stage_id: 0, name: shared, engine: sim, slots: 2, engine_args: {latency: [0.0, 0.2]}}
- {stage_id: 1, name: directed, engine: sim, slots: 4, input_sources: [0], lb_policy: round-robin,
   final_output: true, final_output_type: text, engine_args: {latency: [0.0, 0.1], outputs: {text: text}}}
"""


async def test_no_request_fails_when_all_stages_are_restarted_under_load(tmp_path: Path) -> None:
    """Two replicas, then a single one, whose tasks wait for it; one attempt a request: none is used up."""
    spec = pipeline_of(tmp_path, PIPELINE)
    async with Cluster(tmp_path / "cluster", spec, replicas={0: 2}) as cluster:
        before = pids(cluster)
        async with Load(cluster.connection, spec, cluster.url, http_callers=6, raw_pause=0.1) as load:
            await load.more(10)
            done = await asyncio.to_thread(
                omnibus, "restart", "--all", "--pipeline", "rolling", nats=cluster.nats.url, timeout=60.0
            )
            await load.more(10)
            load.finish()
        results = await load.results()
        after = pids(cluster)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("leaves") == done.stdout.count(": up") == 3, done.stdout
    assert {stage: len(found) for stage, found in after.items()} == {0: 2, 1: 1}
    assert all(before[stage].isdisjoint(after[stage]) for stage in (0, 1))
    assert load.retries == 0
    assert {result.state for result in results.values()} == {RequestState.DONE}
    assert {rid: result.outputs[0].text for rid, result in results.items()} == {
        rid: expected_text(prompt) for rid, prompt in load.prompts.items()
    }


def pids(cluster: Cluster) -> dict[int, set[int]]:
    """Process ids of the replicas that are up, by stage."""
    return {stage: {one.pid for one in cluster.view.replicas(stage) if one.status == "up"} for stage in (0, 1)}


async def test_restart_is_refused_when_nobody_would_start_the_replica_again(
    connection: Connection, pipeline: str
) -> None:
    async with stage_bench(connection, pipeline) as bench, bench.replica() as replica:
        with pytest.raises(InvalidRequest, match="without a supervisor"):
            await restart_replicas(connection, bench.spec, 0, timeout=5.0)
        await bench.submit("a")
        assert (await bench.result("a")).replica == replica.record.replica


async def test_restart_stops_with_a_message_when_a_replica_does_not_come_back(
    connection: Connection, pipeline: str
) -> None:
    said: list[str] = []
    async with (
        stage_bench(connection, pipeline) as bench,
        bench.replica(supervised=True) as gone,
        bench.replica() as kept,
    ):
        started = time.monotonic()
        with pytest.raises(ReplicaMissing, match=r"replica r0 .* not come back within 0.5 s: it is down"):
            await restart_replicas(connection, bench.spec, 0, timeout=0.5, say=said.append)
        assert time.monotonic() - started < 3.0
        assert (gone.comes_back, gone.record.status) == (True, "down")
        assert kept.record.status == "up"
    assert len(said) == 1
    assert "r0" in said[0]


async def test_restart_exits_with_1_when_a_replica_does_not_come_back(connection: Connection, pipeline: str) -> None:
    """2 would say that the command was wrong."""
    async with stage_bench(connection, pipeline) as bench, bench.replica(supervised=True):
        await deploy_pipeline(connection, bench.spec)
        words = ("restart", "--stage", "0", "--pipeline", pipeline, "--timeout", "0.2")
        done = await asyncio.to_thread(omnibus, *words, nats=connection.url)
    assert done.returncode == 1, done.stderr
    assert "has not come back" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
