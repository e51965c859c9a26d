"""How many replicas a stage should have: a table of what happens, and what always holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from omnibus.registry.scaling import ScalePolicy, ScaleState, scale

pytestmark = pytest.mark.unit
POLICY = ScalePolicy(least=0, most=3, lag=2, cooldown=10.0)


def course(policy: ScalePolicy, *looks: tuple[float, int]) -> list[int]:
    """The number that is wanted after each look (time, lag)."""
    state, found = ScaleState(wanted=policy.least), []
    for now, lag in looks:
        state = scale(policy, state, lag, now)
        found.append(state.wanted)
    return found


@pytest.mark.parametrize(
    ("looks", "wanted"),
    [
        ([(0, 0), (1, 0)], [0, 0]),
        ([(0, 1)], [1]),  # the first request is enough for one
        ([(0, 2), (1, 3), (2, 4), (3, 5), (4, 99)], [1, 2, 2, 3, 3]),
        ([(0, 6), (1, 0), (10.9, 0), (11, 0)], [3, 3, 3, 0]),
        ([(0, 6), (1, 0), (5, 6), (6, 0), (15, 0), (16, 0)], [3, 3, 3, 3, 3, 0]),  # what is needed again begins anew
        (
            [(0, 6), (1, 0), (5, 3), (6, 0), (11, 0), (21, 0), (31, 0)],
            [3, 3, 3, 3, 2, 2, 0],
        ),  # to the most of the cooldown
    ],
)
def test_number_follows_the_lag_up_at_once_and_down_after_a_cooldown(
    looks: list[tuple[float, int]], wanted: list[int]
) -> None:
    assert course(POLICY, *looks) == wanted


def test_number_stays_at_the_least_when_nothing_waits() -> None:
    assert course(ScalePolicy(least=1, most=3), (0, 0), (1000, 0), (2000, 0)) == [1, 1, 1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"least": 2, "most": 1},
        {"most": 0},
        {"least": -1, "most": 1},
        {"most": 1, "lag": 0},
        {"most": 1, "cooldown": -1},
    ],
)
def test_bounds_that_cannot_work_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"cannot be|lag of 1"):
        ScalePolicy(**wrong)  # type: ignore[arg-type]


def test_number_counts_less_in_its_bounds_when_replicas_were_ended_for_good() -> None:
    policy = ScalePolicy(least=2, most=4, lag=2, cooldown=10.0)
    state = ScaleState(wanted=3, enough_since=5.0, enough=3).without(1)
    assert scale(policy.without(1), state, 0, 6.0).wanted == 2, "the least is one less, too: nothing comes in its stead"
    assert [scale(policy.without(ended), state, 99, 6.0).wanted for ended in range(6)] == [4, 3, 2, 1, 1, 1]
    ended = ScaleState(wanted=2).without(2)
    assert [scale(policy.without(2), ended, lag, 7.0).wanted for lag in (0, 1, 4)] == [0, 1, 2], (
        "the queue calls another"
    )
    assert ScaleState(wanted=0).without(3).wanted == 0


POLICIES = some.builds(
    lambda least, more, lag, cooldown: ScalePolicy(least=least, most=least + more, lag=lag, cooldown=cooldown),
    some.integers(0, 5), some.integers(1, 5), some.integers(1, 9), some.integers(0, 60),
)  # fmt: skip
LOOKS = some.lists(some.tuples(some.integers(0, 20), some.integers(0, 100)), max_size=40)


@given(POLICIES, LOOKS)
def test_number_is_in_its_bounds_never_too_small_and_no_larger_than_a_cooldown_needed(
    policy: ScalePolicy, looks: list[tuple[int, int]]
) -> None:
    state, now, history = ScaleState(wanted=policy.least), 0.0, list[tuple[float, int]]()
    for pause, lag in looks:
        now += pause
        before, state = state.wanted, scale(policy, state, lag, now)
        history.append((now, policy.needed(lag)))
        assert policy.least <= state.wanted <= policy.most
        assert state.wanted >= policy.needed(lag)
        if state.wanted < before:
            recent = [needed for at, needed in history if at > now - policy.cooldown]
            assert state.wanted >= max(recent, default=0)
        else:
            assert state.wanted in (before, policy.needed(lag))


@given(POLICIES, LOOKS)
def test_number_comes_down_to_the_least_when_nothing_waits_for_two_cooldowns(
    policy: ScalePolicy, looks: list[tuple[int, int]]
) -> None:
    state, now = ScaleState(wanted=policy.least), 0.0
    for pause, lag in looks:
        now += pause
        state = scale(policy, state, lag, now)
    for _ in range(4):
        state = scale(policy, state, 0, now)
        now += policy.cooldown
    assert state.wanted == policy.least
