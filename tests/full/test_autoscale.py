"""`omnibus autoscale` with real engine processes: from zero by the first request, up with the queue, and down to zero again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from omnibus.workers.engines.sim import expected_text
from tests.support.cluster import Cluster, pipeline_of
from tests.support.served import omnibus
from tests.support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
PIPELINE = """
name: scaled
deadline: 90s
heartbeat_timeout: 2s
stages:
- {stage_id: 0, name: writer, engine: sim, slots: 2, final_output: true, final_output_type: text,
   engine_args: {latency: [0.4, 0.6]}}
"""
REQUESTS, AT_ONCE = 60, 12
COOLDOWN = 3.0


async def test_stage_goes_from_zero_to_three_and_back_by_its_queue_and_no_request_fails(tmp_path: Path) -> None:
    spec = pipeline_of(tmp_path, PIPELINE)
    async with Cluster(tmp_path / "cluster", spec, replicas={0: 0}) as cluster:
        words = ("--stage", "writer", "--max", "3", "--cooldown", str(COOLDOWN), "--every", "0.3", "--grace", "10")
        await cluster.start("autoscale", "autoscale", "--pipeline", spec.name, *words)
        seen: list[int] = []
        cluster.view.on_change(lambda _change: seen.append(alive()))

        def alive() -> int:
            return sum(one.alive for one in cluster.view.replicas(0))

        assert alive() == 0
        async with httpx.AsyncClient(base_url=cluster.url, timeout=60.0) as client:
            slots = asyncio.Semaphore(AT_ONCE)

            async def ask(number: int) -> None:
                async with slots:
                    prompt = f"request {number} says hello"
                    body = {"model": spec.name, "messages": [{"role": "user", "content": prompt}]}
                    answer = await client.post("/v1/chat/completions", json=body)
                    assert answer.status_code == 200, answer.text
                    assert answer.json()["choices"][0]["message"]["content"] == expected_text(prompt)

            await ask(0)  # from zero
            assert alive() == 1
            async with asyncio.TaskGroup() as group:
                for number in range(1, REQUESTS):
                    group.create_task(ask(number), name=f"ask-{number}")
            assert max(seen) == 3
            await eventually(lambda: alive() == 0, COOLDOWN * 3 + 20.0, what="the queue is empty, and so is the stage")
            await ask(REQUESTS)  # and from zero again
        assert await cluster.stop("autoscale") == 0
        await eventually(lambda: alive() == 0, 10.0, what="what it started ended with it")
    assert max(seen) == 3, "never beyond the bound"


async def test_replica_that_is_ended_for_good_stays_so_until_the_queue_wants_another(tmp_path: Path) -> None:
    spec = pipeline_of(tmp_path, PIPELINE)
    async with Cluster(tmp_path / "cluster", spec, replicas={0: 0}) as cluster:
        words = ("--stage", "writer", "--min", "1", "--max", "2", "--cooldown", "60", "--every", "0.2", "--grace", "10")
        await cluster.start("autoscale", "autoscale", "--pipeline", spec.name, *words)
        seen: list[str] = []
        cluster.view.on_change(
            lambda _change: seen.extend(one.instance for one in cluster.view.replicas(0) if one.alive)
        )

        async def end_the_only_one() -> str:
            (record,) = await eventually(lambda: [one for one in cluster.view.replicas(0) if one.ready], 90.0)
            words = ("replicas", "drain", f"writer.{record.replica}", "--end", "--pipeline", spec.name)
            done = await asyncio.to_thread(omnibus, *words, nats=cluster.nats.url)
            assert done.stdout == f"writer.{record.replica}: ended\n", done.stderr
            return record.instance.rpartition("-")[0]

        first = await end_the_only_one()
        async with httpx.AsyncClient(base_url=cluster.url, timeout=60.0) as client:
            body = {"model": spec.name, "messages": [{"role": "user", "content": "who is there"}]}
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
        processes = {instance.rpartition("-")[0] for instance in seen}
        assert (len(set(seen)), len(processes)) == (2, 2), "the queue had another one started, on other devices"
        assert await end_the_only_one() in processes - {first}
        assert await cluster.ended("autoscale") == 0, "as a worker, it ends with the last one that it may have"
