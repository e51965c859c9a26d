"""Replicas come and go under load: who is there shares it, who leaves finishes or hands back, and no request fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from omnibus.requests.state import RequestState
from omnibus.wire import codec, subjects
from omnibus.wire.control import Announcement
from omnibus.workers.engines.sim import expected_text
from tests.support.cluster import Cluster, pipeline_of
from tests.support.load import Load
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration

PIPELINE = """
name: elastic
deadline: 60s
heartbeat_timeout: 2s
stages:
- {stage_id: 0, name: only, engine: sim, slots: 2, final_output: true, final_output_type: text,
   engine_args: {latency: [0.02, 0.06]}}
"""


class Shares:
    """Counts the tasks that each replica claims."""

    def __init__(self) -> None:
        self.by_replica: Counter[str] = Counter()
        self._seen: set[str] = set()

    async def on_message(self, message: object) -> None:
        claim = codec.decode(message.data, Announcement)  # type: ignore[attr-defined]
        for _, ack_subject in claim.taken:
            if ack_subject not in self._seen:
                self._seen.add(ack_subject)
                self.by_replica[claim.replica] += 1


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path / "cluster", pipeline_of(tmp_path, PIPELINE)) as running:
        await running.worker(0, name="second")
        await running.wait_up({0: 2})
        yield running


async def test_no_request_fails_when_a_third_replica_joins_and_the_first_leaves(cluster: Cluster) -> None:
    shares = Shares()
    await cluster.connection.subscribe(subjects.claims(cluster.spec.name), shares.on_message)
    async with Load(cluster.connection, cluster.spec, cluster.url, http_callers=6) as load:
        await load.more(60)
        both = Counter(shares.by_replica)
        assert set(both) == {"r0", "r1"}
        assert min(both.values()) > 15, f"two replicas share the load: {both}"

        await cluster.worker(0, name="joiner")
        await eventually(lambda: shares.by_replica["r2"] > 10, 60, what="the one that joined gets tasks")
        await load.more(20)

        assert await cluster.stop("worker-0") == 0
        left = Counter(shares.by_replica)
        await load.more(40)
        since = shares.by_replica - left
        assert set(since) == {"r1", "r2"}, "the one that left takes nothing more, the others share the load"
        load.finish()
    results = await load.results()
    assert {result.state for result in results.values()} == {RequestState.DONE}
    assert {rid: result.outputs[0].text for rid, result in results.items()} == {
        rid: expected_text(prompt) for rid, prompt in load.prompts.items()
    }
    await load.check_ended_once()
    await load.check_nothing_queued()
