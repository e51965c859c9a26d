"""Who waits how long for room, and which lane takes what a tenant wants beyond its share."""

from __future__ import annotations

import msgspec
import pytest

from omnibus.pipeline.route import Forwarding
from omnibus.requests.admission import lane_of
from omnibus.requests.overload import LONGEST, SHORTEST, WINDOW, Pace, bound, messages_a_request, retry_after
from omnibus.wire.request import Request
from tests.support.flow import line

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("must_end", "pace", "seconds"),
    [
        (100, 20.0, 5.0),
        (1, 200.0, SHORTEST),
        (10_000, 1.0, LONGEST),
        (1, 0.0, LONGEST),
        (1, None, SHORTEST),
    ],
)
def test_wait_is_what_must_end_over_the_pace_when_a_bound_is_reached(
    must_end: int, pace: float | None, seconds: float
) -> None:
    assert retry_after(must_end, pace) == seconds


def test_pace_is_growth_a_second_when_it_was_watched() -> None:
    pace = Pace()
    assert pace.a_second(0.0) is None
    pace.mark(0.0, 100)
    assert pace.a_second(0.1) is None, "too short a time to tell"
    for tenth in range(1, 51):
        pace.mark(tenth / 10, 100 + tenth)
    assert pace.a_second(5.0) == pytest.approx(10.0)
    assert len(pace._marks) < 30


def test_pace_falls_when_nothing_ends_any_more_and_is_forgotten_in_the_end() -> None:
    pace = Pace()
    pace.mark(0.0, 0)
    pace.mark(1.0, 40)
    assert pace.a_second(1.0) == pytest.approx(40.0)
    assert pace.a_second(4.0) == pytest.approx(10.0)
    assert pace.a_second(2.0 + WINDOW) is None


@pytest.mark.parametrize(("forwarding", "count"), [(Forwarding.ORCHESTRATOR, 5), (Forwarding.DIRECT, 4)])
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
    [(1000, "interactive", 1000), (1000, "batch", 1000), (1000, "overflow", 900), (9, "overflow", 9)],
)
def test_last_tenth_of_room_is_kept_from_those_beyond_their_share(most: int, lane: str, expected: int) -> None:
    assert bound(line("p", max_open_requests=most), lane) == expected


def test_overflow_is_served_between_interactive_and_batch() -> None:
    assert line("p", lanes=("batch", "interactive")).stage_lanes == ("interactive", "overflow", "batch")
    assert line("p").stage_lanes == ("interactive", "overflow")
