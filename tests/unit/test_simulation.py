"""The product on a modelled broker: a few hundred interleavings, and a few of the holes that they must find."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.simulation.sweep import first_failure, sweep
from tests.simulation.world import simulate

pytestmark = [pytest.mark.unit, pytest.mark.timeout(600)]
SEEDS = range(1000)


def test_no_promise_is_broken_when_anything_may_go_wrong() -> None:
    broken = [str(outcome) for outcome in sweep(SEEDS)]
    assert not broken, "\n".join(broken)


def test_no_promise_is_broken_and_nothing_stays_when_payloads_are_in_shared_memory() -> None:
    broken = [str(outcome) for outcome in sweep(SEEDS, hosted=True)]
    assert not broken, "\n".join(broken)


def test_no_promise_is_broken_when_inputs_are_open() -> None:
    broken = [str(outcome) for outcome in sweep(SEEDS[:400], graph="session")]
    assert not broken, "\n".join(broken)


def test_payloads_stay_when_nobody_asks_about_them() -> None:
    assert first_failure(range(100), hole="unswept_memory") is not None


def test_a_seed_gives_the_same_schedule_when_it_is_replayed_elsewhere() -> None:
    here = simulate(7, traced=True)
    command = [sys.executable, "-m", "tests.simulation", "--seed", "7"]
    there = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120).stdout
    assert there.splitlines() == str(here).splitlines()


@pytest.mark.parametrize(
    "hole",
    [
        "admit_on_record",
        "bounded_tasks",
        "no_nonce",
        "two_naks_a_claim",
        "endless_attempts",
        "deaf_followers",
        "records_expire_at_their_deadline",
        "bundles_of_one",
        "companions_of_any_attempt",
        "flows_without_expected_sequence",
        "flow_tasks_once",
        "flows_end_unacknowledged",
        "flows_begun_twice",
        "forgotten_flows",
        "segments_by_number_alone",
        "segments_without_expected_sequence",
        "later_attempts_listen_on",
        "forgotten_inputs",
        "inputs_read_silently",
    ],
)
def test_a_seed_fails_when_a_hole_is_planted(hole: str) -> None:
    assert first_failure(range(200), hole=hole) is not None
