"""The status of a pipeline: what waits, what runs, and who serves it."""

from __future__ import annotations

import re

import pytest
from rich.console import Console, Group

from omnibus.cli.cluster_report import describe_pipeline
from omnibus.client.cluster_view import PipelineStatus
from omnibus.ledger.work_queue import QueueDepth
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from tests.support.directed import one_stage

pytestmark = pytest.mark.unit
UP = ReplicaRecord(stage_id=0, replica="r0", instance="one", status=ReplicaStatus.UP, host="here", pid=7)


def shown(status: PipelineStatus) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(Group(*describe_pipeline(status)))
    return captured.get()


def test_running_tasks_are_not_queued_when_replicas_have_them() -> None:
    depths = {"stage-0-r0": QueueDepth(2, 1), "stage-0-interactive": QueueDepth(1, 3), "stage-1-r0": QueueDepth(9, 9)}
    status = PipelineStatus(one_stage("p"), [UP], depths, 0.0)

    (stage,) = status.as_json()["stages"]
    assert (stage["queued"], stage["running"]) == (3, 4), "lanes of replicas count, other stages do not"
    assert re.search(r"0 \w+ +3 +4 +r0 +up +0/1 +here:7", shown(status))


@pytest.mark.parametrize(("waiting", "says"), [(0, "0 tasks wait"), (1, "1 task waits"), (2, "2 tasks wait")])
def test_pipeline_is_one_line_when_no_replica_serves_it(waiting: int, says: str) -> None:
    gone = ReplicaRecord(stage_id=0, replica="r0", instance="one", status=ReplicaStatus.DOWN)
    depths = {"stage-0-interactive": QueueDepth(waiting, 0)}
    assert f"p: deployed and not served, {says};" in shown(PipelineStatus(one_stage("p"), [gone], depths, 0.0))
