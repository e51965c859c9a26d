"""Whether a series of samples grows: pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression

Sample = tuple[float, float]
"""Seconds since the beginning, and the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """The growth that counts as flat: over the second half, a share of its mean, or an amount, whichever is more."""

    share: float = 0.05
    amount: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """The regression line through the second half of a series: its first half is warming up."""

    mean: float
    per_hour: float
    growth: float
    """From the beginning of the second half to its end, on the line."""
    is_flat: bool


def trend_of(samples: Sequence[Sample], allowance: Allowance) -> Trend:
    """The trend of a series; one that shrinks is flat. Raises ValueError below four samples in the second half."""
    middle = (samples[0][0] + samples[-1][0]) / 2 if samples else 0.0
    late = [sample for sample in samples if sample[0] >= middle]
    if len(late) < 4:
        raise ValueError(f"{len(late)} samples in the second half say nothing")
    slope, _ = linear_regression([at for at, _ in late], [value for _, value in late])
    mean, growth = fmean(value for _, value in late), slope * (late[-1][0] - late[0][0])
    is_flat = growth <= max(allowance.share * mean, allowance.amount)
    return Trend(mean=mean, per_hour=slope * 3600, growth=growth, is_flat=is_flat)


def per_arrival(samples: Sequence[Sample], arrivals: Sequence[float], lifetime: float) -> list[Sample]:
    """Each value by how many arrived, at sorted times, within `lifetime` seconds before it.

    What is kept for that long grows with the rate of arrivals; this does not. Samples before any arrival are left out.
    """
    within = [(at, value, bisect_right(arrivals, at) - bisect_right(arrivals, at - lifetime)) for at, value in samples]
    return [(at, value / arrived) for at, value, arrived in within if arrived]
