"""Readiness of a model: the stages without a replica that is up."""

from __future__ import annotations

import math

import pytest

from omnibus.frontdoor.error_answers import error_response
from omnibus.frontdoor.stage_readiness import MissingStage, NotReady, missing_stages
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from tests.support.front import omni_sim

pytestmark = pytest.mark.unit

SPEC = omni_sim("p")


def replica(stage_id: int, status: ReplicaStatus, registered_at: float = 0.0) -> ReplicaRecord:
    return ReplicaRecord(
        stage_id=stage_id, replica="r0", instance=f"i{stage_id}{status}", status=status, registered_at=registered_at
    )


UP, STARTING, DOWN = ReplicaStatus.UP, ReplicaStatus.STARTING, ReplicaStatus.DOWN


@pytest.mark.parametrize(
    ("records", "needed", "missing"),
    [
        ([replica(0, UP), replica(1, UP), replica(2, UP)], None, []),
        ([replica(0, UP)], [0], []),
        ([replica(0, UP), replica(1, STARTING, 70.0)], [0, 1], [MissingStage("painter", 30.0)]),
        ([replica(1, STARTING, 90.0), replica(1, STARTING, 60.5)], [1], [MissingStage("painter", 39.5)]),
        ([replica(1, STARTING, 60.0), replica(1, UP)], [1], []),
        ([replica(2, STARTING, 200.0)], [2], [MissingStage("speaker", 0.0)]),
        ([replica(0, DOWN), replica(1, ReplicaStatus.DRAINING), replica(2, ReplicaStatus.ERROR)], None, [
            MissingStage("writer", None), MissingStage("painter", None), MissingStage("speaker", None)]),
    ],
)  # fmt: skip
def test_a_stage_is_missing_when_no_replica_of_it_is_up(
    records: list[ReplicaRecord], needed: list[int] | None, missing: list[MissingStage]
) -> None:
    assert missing_stages(SPEC, records, needed, now=100.0) == missing


@pytest.mark.parametrize(
    ("loading", "seconds"), [([None], 5), ([0.2], 1), ([12.0, None], 6), ([7.0, 40.0], 20), ([10_000.0], 30)]
)
def test_the_caller_is_told_when_to_ask_again(loading: list[float | None], seconds: int) -> None:
    error = NotReady("omni", [MissingStage(f"s{index}", since) for index, since in enumerate(loading)])
    assert math.isclose(float(error_response(error).headers["Retry-After"]), seconds)
    assert "s0" in error.message
