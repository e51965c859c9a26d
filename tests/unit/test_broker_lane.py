"""The accounting of one consumer's pull requests."""

from __future__ import annotations

import pytest

from omnibus.broker import lane as lane_module
from omnibus.broker.lane import Lane

pytestmark = pytest.mark.unit


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(lane_module.time, "monotonic", lambda: now[0])
    return now


def test_outstanding_falls_to_zero_when_messages_and_statuses_account_for_all() -> None:
    lane = Lane("S", "c", 0)
    lane.park(3)
    first = lane.last_token
    lane.park(2)
    lane.received()
    lane.received()
    assert lane.outstanding == 3
    lane.ended(first, 1)
    assert (lane.outstanding, lane.knows(first)) == (2, False)
    lane.ended(lane.last_token, 2)
    assert lane.outstanding == 0


def test_statuses_of_forgotten_requests_do_not_count() -> None:
    lane = Lane("S", "c", 0)
    lane.park(3)
    stale = lane.last_token
    lane.reset()
    lane.park(3)
    assert not lane.knows(stale)
    assert lane.outstanding == 3


async def test_ask_is_answered_when_all_came_or_nothing_is_left() -> None:
    lane = Lane("S", "c", 0)
    answered = lane.ask(2)
    lane.received()
    assert not answered.done()
    lane.received()
    assert answered.done()
    answered = lane.ask(2)
    lane.ended(lane.last_token, None)
    assert answered.done()
    assert lane.outstanding == 0


async def test_ask_ends_when_the_connection_breaks() -> None:
    lane = Lane("S", "c", 0)
    answered = lane.ask(1)
    lane.reset()
    assert answered.done()


def test_lane_is_silent_when_a_parked_request_gets_no_sign(clock: list[float]) -> None:
    lane = Lane("S", "c", 0)
    lane.park(1)
    clock[0] += 2 * lane_module.HEARTBEAT
    assert not lane.silent()
    clock[0] += lane_module.HEARTBEAT
    assert lane.silent()
    lane.received_message()
    assert not lane.silent()
    lane.received()
    clock[0] += 1000
    assert not lane.silent()  # nothing is awaited


def test_lane_is_silent_when_every_request_should_be_over(clock: list[float]) -> None:
    lane = Lane("S", "c", 0)
    lane.park(1)
    clock[0] += lane_module.EXPIRES + 2 * lane_module.HEARTBEAT
    lane.received_message()
    assert lane.silent()


def test_pauses_grow_and_start_afresh_when_messages_come_again() -> None:
    lane = Lane("S", "c", 0)
    pauses = [lane.lost() for _ in range(7)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 1.0
    assert not lane.available
    lane.received()
    assert lane.lost() == pauses[0] == lane_module.FIRST_PAUSE
    lane.available = True
    lane.park(1)
    lane.ended(lane.last_token, 1)
    assert lane.lost() == pauses[0]


def test_requests_that_were_answered_in_full_are_forgotten_when_they_are_over(clock: list[float]) -> None:
    lane = Lane("S", "c", 0)
    for _ in range(1000):
        lane.park(1)
        lane.park(1)
        lane.received()
        clock[0] += 1
    assert len(lane._tokens) < 2 * (lane_module.EXPIRES + lane_module.HEARTBEAT + 2)
