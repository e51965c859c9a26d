"""A batch goes on when anything dies: each line is one request, answered once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.batch_deaths import check_answers, deaths_of, through_deaths
from tests.support.batches import left_of_batches, requests_of
from tests.support.cluster import Cluster, pipeline_of
from tests.support.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

LINES = 400
PIPELINE = """
name: batched
lanes: [interactive, batch]
deadline: 120s
heartbeat_timeout: 2s
stages:
- {stage_id: 0, name: first, engine: sim, slots: 8, engine_args: {latency: [0.02, 0.2]}}
- {stage_id: 1, name: second, engine: sim, slots: 8, input_sources: [0], final_output: true, final_output_type: text,
   engine_args: {latency: [0.02, 0.2]}}
"""


async def test_every_line_is_answered_once_when_front_door_orchestrator_worker_and_server_are_killed(
    tmp_path: Path,
) -> None:
    async with Cluster(tmp_path, pipeline_of(tmp_path, PIPELINE), replicas={0: 1, 1: 1}) as cluster:
        end, found = await through_deaths(cluster, LINES, deaths_of(cluster), within=120.0)
        check_answers(end, found, LINES)
        assert len(await requests_of(cluster.connection, cluster.spec.name)) == LINES, "a line became two requests"

        async def nothing_left() -> bool:
            return await left_of_batches(cluster.connection) == 0

        await eventually(nothing_left, 10.0, what="nothing is left of the batch")
