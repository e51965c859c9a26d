"""Many interleavings of the product on a modelled broker, and every hole that they must find; `make simulation` runs more."""

from __future__ import annotations

import pytest

from tests.simulation.holes import HOLES
from tests.simulation.sweep import sweep

pytestmark = [pytest.mark.unit, pytest.mark.timeout(7200)]
SEEDS = range(20_000)
BOUND = range(6000)
"""Seeds within which a planted hole is found."""


def test_no_promise_is_broken_when_anything_may_go_wrong() -> None:
    broken = [str(outcome) for outcome in sweep(SEEDS)]
    assert not broken, "\n".join(broken)


def test_no_promise_is_broken_and_nothing_stays_when_payloads_are_in_shared_memory() -> None:
    broken = [str(outcome) for outcome in sweep(SEEDS[:6000], hosted=True)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("hole", sorted(HOLES))
def test_a_seed_fails_when_a_hole_is_planted(hole: str) -> None:
    found = next(sweep(BOUND, hole=hole), None)
    assert found is not None, f"{HOLES[hole].__doc__}: no seed fails"
