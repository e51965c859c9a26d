"""A batch of 5,000 lines through the deaths of front door, orchestrator, worker and server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.batch_deaths import check_answers, deaths_of, through_deaths
from tests.support.batches import requests_of
from tests.support.cluster import Cluster, pipeline_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

LINES = 5000
PIPELINE = """
name: large-batch
lanes: [interactive, batch]
deadline: 300s
heartbeat_timeout: 2s
stages:
- {stage_id: 0, name: first, engine: sim, slots: 32, engine_args: {latency: [0.02, 0.2]}}
- {stage_id: 1, name: second, engine: sim, slots: 32, input_sources: [0], final_output: true, final_output_type: text,
   engine_args: {latency: [0.02, 0.2]}}
"""


async def test_5000_lines_are_answered_once_each_when_everything_is_killed_in_turn(tmp_path: Path) -> None:
    async with Cluster(tmp_path, pipeline_of(tmp_path, PIPELINE), replicas={0: 1, 1: 1}) as cluster:
        end, found = await through_deaths(cluster, LINES, 2 * deaths_of(cluster), within=600.0)
        check_answers(end, found, LINES)
        assert len(await requests_of(cluster.connection, cluster.spec.name)) == LINES, "a line became two requests"
