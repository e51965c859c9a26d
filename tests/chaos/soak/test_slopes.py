"""What grows is told from what is flat."""

from __future__ import annotations

import pytest

from tests.chaos.soak.slopes import Allowance, per_arrival, trend_of

pytestmark = pytest.mark.unit

FIVE_PERCENT, TEN_PERCENT = Allowance(share=0.05), Allowance(share=0.1)


def test_series_is_flat_when_it_grew_in_its_first_half_only() -> None:
    trend = trend_of([(float(at), min(at, 50.0)) for at in range(100)], FIVE_PERCENT)
    assert trend.is_flat
    assert trend.mean == pytest.approx(50.0)


def test_series_grows_when_its_second_half_does() -> None:
    trend = trend_of([(float(at), 100.0 + at) for at in range(100)], FIVE_PERCENT)
    assert not trend.is_flat
    assert trend.per_hour == pytest.approx(3600.0)
    assert trend.growth == pytest.approx(49.0)


def test_series_is_flat_when_it_shrinks_or_grows_within_its_allowance() -> None:
    assert trend_of([(float(at), 100.0 - at) for at in range(20)], FIVE_PERCENT).is_flat
    assert trend_of([(float(at), float(at)) for at in range(20)], Allowance(amount=10.0)).is_flat


def test_series_says_nothing_when_it_is_short() -> None:
    with pytest.raises(ValueError, match="samples"):
        trend_of([(0.0, 1.0), (1.0, 1.0)], FIVE_PERCENT)


def test_what_is_kept_for_a_while_is_flat_when_only_the_load_grows() -> None:
    arrivals = sorted(
        [float(at) for at in range(200)] + [100.0 + at / 4 for at in range(400)]
    )  # five times as many, later
    kept = [(at, float(sum(at - 20.0 < one <= at for one in arrivals))) for at in map(float, range(0, 200, 5))]
    assert not trend_of(kept, TEN_PERCENT).is_flat
    assert trend_of(per_arrival(kept, arrivals, 20.0), TEN_PERCENT).is_flat


def test_what_is_kept_for_a_while_grows_when_some_of_it_stays_for_ever() -> None:
    arrivals = [float(at) for at in range(200)]
    kept = [(at, 20.0 + at / 10) for at in map(float, range(0, 200, 5))]
    assert not trend_of(per_arrival(kept, arrivals, 20.0), TEN_PERCENT).is_flat
