"""`omnibus status` says when nobody can hear of lost connections."""

from __future__ import annotations

import pytest
from rich.console import Console

from omnibus.cli.status import Snapshot
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from tests.support.directed import one_stage

pytestmark = pytest.mark.unit
UP = ReplicaRecord(stage_id=0, replica="r0", instance="one", status=ReplicaStatus.UP, host="here", pid=7)


def shown(*, system_account: bool) -> str:
    snapshot = Snapshot(one_stage("p"), [UP], {"stage-0-r0": 2, "stage-0-interactive": 1}, 0.0, system_account)
    assert snapshot.as_json()["system_account"] is system_account
    console = Console(width=120)
    with console.capture() as captured:
        console.print(snapshot.table())
    return captured.get()


def test_status_says_so_when_there_is_no_system_account() -> None:
    assert "no system account" in shown(system_account=False)
    assert "no system account" not in shown(system_account=True)


def test_what_waits_on_lanes_of_replicas_is_counted_when_tasks_are_directed() -> None:
    snapshot = Snapshot(one_stage("p"), [UP], {"stage-0-r0": 2, "stage-0-interactive": 1, "stage-1-r0": 9}, 0.0)
    assert snapshot.queued(0) == 3
