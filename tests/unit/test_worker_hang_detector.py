"""Which replicas count as absent, look by look."""

from __future__ import annotations

import pytest

from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from omnibus.workers.hang_detector import LOOKS, Absences

pytestmark = pytest.mark.unit
RUNNING = {"one", "two"}


def record(instance: str, status: ReplicaStatus = ReplicaStatus.UP) -> ReplicaRecord:
    return ReplicaRecord(stage_id=0, replica=instance[0], instance=instance, status=status)


def looks(absences: Absences, times: int, *beating: ReplicaRecord) -> list[str]:
    return [found.instance for _ in range(times) for found in absences.look(beating, RUNNING)]


def test_replica_is_found_when_it_is_missing_often_enough_in_a_row() -> None:
    absences = Absences()
    assert looks(absences, 3, record("one"), record("two")) == []
    assert looks(absences, LOOKS - 1, record("two")) == []
    assert looks(absences, 1, record("two")) == ["one"]


def test_replica_is_found_again_when_it_was_not_killed() -> None:
    absences = Absences()
    looks(absences, 1, record("one"))
    assert looks(absences, 2 * LOOKS) == ["one", "one"]


def test_count_starts_over_when_a_replica_is_seen_again() -> None:
    """Such as after a suspension of the whole machine, or an outage of the broker."""
    absences = Absences()
    looks(absences, 1, record("one"))
    looks(absences, LOOKS - 1)
    looks(absences, 1, record("one"))
    assert looks(absences, LOOKS - 1) == []


@pytest.mark.parametrize("seen", [(), (record("one", ReplicaStatus.STARTING),)])
def test_replica_is_left_alone_when_it_has_never_served(seen: tuple[ReplicaRecord, ...]) -> None:
    absences = Absences()
    looks(absences, 1, *seen)
    assert looks(absences, 3 * LOOKS) == []


def test_replica_is_left_alone_when_its_process_is_not_ours_or_has_ended() -> None:
    absences = Absences()
    looks(absences, 1, record("elsewhere"), record("one"))
    assert absences.look([], set()) == []
    assert looks(absences, 3 * LOOKS) == []
