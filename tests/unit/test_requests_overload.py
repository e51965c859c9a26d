"""The time to wait after a refusal, and the lane of requests beyond a tenant's share."""

from __future__ import annotations

import msgspec
import pytest

from omnibus.ledger.overload import LONGEST, SHORTEST, WINDOW, Rate, bound, messages_a_request
from omnibus.pipeline.route import Forwarding
from omnibus.requests.admission import lane_of
from omnibus.wire.request import Request
from tests.support.flow import line

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("must_end", "ended", "each", "seconds"),
    [
        (100, 100, 1, 5.0),
        (1, 1000, 1, SHORTEST),
        (10_000, 5, 1, LONGEST),
        (4, 50, 5, 2.0),
        (1, 4, 5, 4.0),
        (1, 0, 1, 5.0),
    ],
)
def test_wait_goes_by_the_pace_when_a_bound_is_reached(must_end: int, ended: int, each: int, seconds: float) -> None:
    """Ended within five seconds, the last of them a second in; where less than one whole request did, the time since counts."""
    pace = Rate()
    pace.mark(0.0, 7)
    pace.mark(1.0, 7 + ended)
    assert pace.retry_after(5.0, must_end, each=each) == pytest.approx(seconds)


def test_wait_starts_small_and_grows_when_nothing_ends() -> None:
    """A burst into a slow stage: no 60 by rule, and no more than it has lasted."""
    pace, answers = Rate(), []
    assert pace.retry_after(100.0, 1) == SHORTEST
    for now in (100.0, 101.0, 102.0, 104.0, 108.0, 130.0, 200.0):
        pace.mark(now, 40) if now < 110 else None
        answers.append(pace.retry_after(now, 1))
    assert answers == [1.0, 1.0, 2.0, 4.0, 8.0, 30.0, LONGEST]


def test_wait_starts_small_when_nobody_looked_for_long() -> None:
    pace = Rate()
    pace.mark(0.0, 0)
    pace.mark(500.0, 0)
    assert pace.retry_after(501.0, 1) == SHORTEST


def test_marks_are_few_when_many_end() -> None:
    pace = Rate()
    for hundredth in range(2000):
        pace.mark(hundredth / 100, hundredth)
    assert len(pace._marks) < 2 * WINDOW / 0.25


@pytest.mark.parametrize(("forwarding", "count"), [(Forwarding.ORCHESTRATOR, 5), (Forwarding.DIRECT, 3)])
def test_messages_of_a_request_are_its_timer_tasks_and_events(forwarding: Forwarding, count: int) -> None:
    assert messages_a_request(line("p", forwarding)) == count


@pytest.mark.parametrize(
    ("lane", "others", "share", "expected"),
    [
        ("interactive", 3, 4, "interactive"),
        ("interactive", 4, 4, "overflow"),
        ("interactive", 4, None, "interactive"),
        ("batch", 4, 4, "batch"),
    ],
)
def test_request_takes_the_overflow_when_its_tenant_has_its_share(
    lane: str, others: int, share: int | None, expected: str
) -> None:
    spec = line("p", lanes=("interactive", "batch"), tenant_share=share)
    request = msgspec.structs.replace(Request(prompt="x"), lane=lane)
    assert lane_of(spec, request, others) == expected


@pytest.mark.parametrize(
    ("most", "lane", "expected"),
    [(1000, "interactive", 1000), (1000, "batch", 900), (1000, "overflow", 900), (9, "overflow", 9)],
)
def test_last_tenth_of_room_is_kept_from_those_beyond_their_share(most: int, lane: str, expected: int) -> None:
    assert bound(line("p", max_open_requests=most), lane) == expected


def test_overflow_is_served_between_interactive_and_batch() -> None:
    assert line("p", lanes=("batch", "interactive")).stage_lanes == ("interactive", "overflow", "batch")
    assert line("p").stage_lanes == ("interactive", "overflow")
