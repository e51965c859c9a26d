"""What counts as growing, and what as more of the same load."""

from __future__ import annotations

import pytest

from tests.chaos.soak.slopes import Allowance, per_arrival, trend_of

ALLOWANCE = Allowance(share=0.1)


@pytest.mark.parametrize(("growth", "is_flat"), [(0.0, True), (0.05, True), (0.5, False), (-0.5, True)])
def test_series_is_flat_when_its_second_half_grows_little(growth: float, is_flat: bool) -> None:
    samples = [(at, 100.0 + growth * max(at - 50.0, 0.0) * 2) for at in map(float, range(0, 101, 5))]
    trend = trend_of(samples, ALLOWANCE)
    assert trend.growth == pytest.approx(growth * 100)
    assert trend.is_flat is is_flat


def test_few_samples_say_nothing_when_asked_for_a_trend() -> None:
    with pytest.raises(ValueError, match="samples in the second half"):
        trend_of([(0.0, 1.0), (5.0, 1.0)], ALLOWANCE)


def test_what_is_kept_for_a_while_is_flat_when_only_the_load_grows() -> None:
    arrivals = sorted(
        [float(at) for at in range(200)] + [100.0 + at / 4 for at in range(400)]
    )  # five times as many, later
    kept = [(at, float(sum(at - 20.0 < one <= at for one in arrivals))) for at in map(float, range(0, 200, 5))]
    assert not trend_of(kept, ALLOWANCE).is_flat
    assert trend_of(per_arrival(kept, arrivals, 20.0), ALLOWANCE).is_flat


def test_what_is_kept_for_a_while_grows_when_some_of_it_stays_for_ever() -> None:
    arrivals = [float(at) for at in range(200)]
    kept = [(at, 20.0 + at / 10) for at in map(float, range(0, 200, 5))]
    assert not trend_of(per_arrival(kept, arrivals, 20.0), ALLOWANCE).is_flat
