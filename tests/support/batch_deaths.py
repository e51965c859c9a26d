"""One batch through deaths: a cluster's processes are killed with -9, one after the other, while it runs and is asked for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import httpx
from openai import AsyncOpenAI
from openai.types import Batch

from tests.support.batches import ENDS, Answers, answers, begun, chat, ended
from tests.support.breaking_http import breaking_http
from tests.support.cluster import Cluster
from tests.support.waiting import eventually

Kill = Callable[[], Awaitable[None]]
_BETWEEN = 0.05
"""Seconds between two questions for the batch."""


def deaths_of(cluster: Cluster) -> list[Kill]:
    """The deaths of a front door, an orchestrator, a worker and the server, each of which comes back."""

    async def front_door() -> None:
        await cluster.kill("frontdoor")
        await cluster.front_door()

    async def orchestrator() -> None:
        await cluster.kill("orchestrator")
        await cluster.orchestrator()

    async def worker() -> None:
        await cluster.kill("worker-1")
        await cluster.worker(1)

    async def server() -> None:
        await cluster.kill_nats(outage=1.0)

    return [front_door, orchestrator, worker, server]


async def through_deaths(
    cluster: Cluster, count: int, kills: Sequence[Kill], *, within: float
) -> tuple[Batch, Answers]:
    """A batch of `count` lines, and its answers; the kills strike at even distances of its way.

    Raises AssertionError where the batch is answered with anything but 200 or 503 by a front door that lives.
    """
    async with AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="any", max_retries=20, timeout=20.0) as client:
        lines = [chat(cluster.spec.name, f"line-{number}", f"say {number}") for number in range(count)]
        batch = await begun(client, lines)
        asking = asyncio.create_task(_ask(cluster, batch.id, within), name="asking")
        try:
            for number, kill in enumerate(kills, 1):
                await _has_come(client, batch, number * count // (len(kills) + 1), within)
                await kill()
                await cluster.wait_up()
            end = await ended(client, batch, within)
            statuses = await asking
        finally:
            asking.cancel()
        assert set(statuses) <= {200, 503}, statuses
        return end, await answers(client, end)


def check_answers(end: Batch, found: Answers, count: int) -> None:
    """Raises AssertionError unless every line was answered once, and right."""
    assert end.request_counts is not None
    assert (end.status, end.request_counts.total) == ("completed", count)
    wrong = [line for line in found.bad if line["response"] is None or line["response"]["status_code"] != 200]
    assert not wrong, wrong[:3]
    assert len(found.good) == len(found.by_id) == count
    assert end.request_counts.completed == count
    for custom_id, line in found.by_id.items():
        text = line["response"]["body"]["choices"][0]["message"]["content"]
        assert text == f"say {custom_id.removeprefix('line-')}"


async def _ask(cluster: Cluster, batch_id: str, within: float) -> Counter[int]:
    """Statuses of the answers to one who asks for a batch until it has ended; a front door that is dead answers nothing."""
    statuses = Counter[int]()
    async with asyncio.timeout(within), breaking_http(cluster.url) as http:
        while True:
            try:
                answer = await http.get(f"/v1/batches/{batch_id}", timeout=30.0)
            except httpx.TransportError:
                await asyncio.sleep(_BETWEEN)
                continue
            statuses[answer.status_code] += 1
            if answer.status_code == httpx.codes.OK and answer.json()["status"] in ENDS:
                return statuses
            await asyncio.sleep(_BETWEEN)


async def _has_come(client: AsyncOpenAI, batch: Batch, share: int, within: float) -> None:
    async def come() -> bool:
        now = await client.batches.retrieve(batch.id)
        if now.status not in ("validating", "in_progress"):
            return True  # between two looks: the death comes while its files are written, or later
        return now.request_counts is not None and now.request_counts.completed >= share

    await eventually(come, within, what=f"{share} lines are answered")
