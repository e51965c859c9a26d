"""Random kills in random order for a while, under load over both doors. A seed repeats a failure as far as timing allows."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from omnibus.requests.state import RequestState
from omnibus.workers.engines.sim import expected_text
from tests.support.cluster import Cluster, pipeline_of
from tests.support.load import Load

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

PIPELINE = """
name: chaos
deadline: 120s
heartbeat_timeout: 2s
max_attempts: 20
stages:
- {stage_id: 0, name: first, engine: sim, slots: 4, engine_args: {latency: [0.0, 0.1]}}
- {stage_id: 1, name: heavy, engine: sim, slots: 4, input_sources: [0], lb_policy: round-robin,
   engine_args: {latency: [0.0, 0.2], outputs: {text: text, tensor: tensor}, size: 100000}}
- {stage_id: 2, name: join, engine: sim, slots: 4, input_sources: [0, 1], final_output: true, final_output_type: text,
   engine_args: {latency: 0.01, outputs: {text: text}}}
edges:
- {source: 0, target: 1, forwarding: direct}
"""
SECONDS = float(os.environ.get("CHAOS_SECONDS", "60"))
"""How long things are killed."""


RESPITE = 0.3
"""How often everything comes up again before the next kill: else nothing would ever be answered on a slow machine."""


class Monkey:
    """Kills one thing after the other."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster, self._random = cluster, random.Random(seed)

    async def rage(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await self._random.choice(self._acts())()
            if self._random.random() < RESPITE:
                await self._cluster.wait_up()
            await asyncio.sleep(self._random.uniform(0.0, 1.5))  # when it strikes next

    def _acts(self) -> list[Callable[[], Awaitable[object]]]:
        return [self._replica, self._replica, self._orchestrator, self._front_door, self._nats, self._worker]

    async def _replica(self) -> None:
        await self._cluster.kill_replica(self._random.choice([0, 1, 2]))

    async def _worker(self) -> None:
        """The supervisor: its replicas die with it."""
        stage_id = self._random.choice([0, 1, 2])
        await self._cluster.kill(f"worker-{stage_id}")
        await self._cluster.worker(stage_id)

    async def _orchestrator(self) -> None:
        await self._cluster.kill("orchestrator")
        await self._cluster.orchestrator()

    async def _front_door(self) -> None:
        await self._cluster.kill("frontdoor")
        await self._cluster.front_door()

    async def _nats(self) -> None:
        await self._cluster.kill_nats(outage=self._random.uniform(0.0, 4.0))


async def test_every_accepted_request_ends_once_when_anything_is_killed_at_random(tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED", "1"))
    print(f"CHAOS_SEED={seed}")
    async with Cluster(tmp_path / "cluster", pipeline_of(tmp_path, PIPELINE)) as cluster:
        async with Load(
            cluster.connection, cluster.spec, cluster.url, http_callers=6, raw_pause=0.1, within=110.0
        ) as load:
            await load.more(20)
            await Monkey(cluster, seed).rage(SECONDS)
            await cluster.wait_up()
            await load.more(20)
            load.finish()
        results = await load.results()
        assert {result.state for result in results.values()} == {RequestState.DONE}
        said = {rid: result.outputs[0].text for rid, result in results.items()}
        assert said == {rid: expected_text(prompt) for rid, prompt in load.prompts.items()}
        assert load.answers == {rid: said[rid] for rid in load.answers}
        await load.check_ended_once()
        await load.check_nothing_queued(30)
        print(f"{len(results)} requests, {load.retries} retries")
