"""How many replicas a stage should have, by what waits for it: pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalePolicy:
    """The bounds of a stage and how it moves between them."""

    least: int = 0
    most: int
    lag: int = 1
    """Tasks, waiting or in hand, for each replica."""
    cooldown: float = 60.0
    """Seconds for which fewer must be enough before any is stopped."""

    def __post_init__(self) -> None:
        """Raises ValueError for bounds that cannot work."""
        if not 0 <= self.least <= self.most or self.most < 1:
            raise ValueError(f"from {self.least} to {self.most} replicas cannot be: at least 0, at most 1 or more")
        if self.lag < 1 or self.cooldown < 0:
            raise ValueError("a replica has a lag of 1 or more, and a cooldown is no less than 0 s")

    def needed(self, lag: int) -> int:
        """Replicas for so many tasks."""
        return min(max(math.ceil(lag / self.lag), self.least), self.most)

    def without(self, ended: int) -> ScalePolicy:
        """The policy once so many replicas were ended for good: fewer at least and at most, but one at most."""
        return replace(self, least=max(self.least - ended, 0), most=max(self.most - ended, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleState:
    """The number that is wanted now, and what has been enough since when."""

    wanted: int
    enough_since: float | None = None
    """Since when fewer would have been enough; None while they are not."""
    enough: int = 0
    """The most that was needed since then."""

    def without(self, ended: int) -> ScaleState:
        """The state once so many replicas were ended for good: what is not needed is not started in their stead."""
        wanted = max(self.wanted - ended, 0)
        return replace(self, wanted=wanted, enough=min(self.enough, wanted))


def scale(policy: ScalePolicy, state: ScaleState, lag: int, now: float) -> ScaleState:
    """The next state: up at once, down to what was enough for the whole of a cooldown. `now` only grows."""
    needed = policy.needed(lag)
    wanted = min(max(state.wanted, policy.least), policy.most)
    if needed >= wanted:
        return ScaleState(wanted=needed)
    if state.enough_since is None:
        state = replace(state, wanted=wanted, enough_since=now, enough=needed)
    enough = max(state.enough, needed)
    assert state.enough_since is not None
    if now - state.enough_since < policy.cooldown:
        return replace(state, wanted=wanted, enough=enough)
    return ScaleState(wanted=enough)
