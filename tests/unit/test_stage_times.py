"""The times of stages, as medians of what their requests' records have."""

from __future__ import annotations

import pytest

from omnibus.client.stage_times import StageTimes, stage_times
from omnibus.pipeline.route import Route
from omnibus.requests.record import Record
from omnibus.wire.envelope import StageTiming, Ticket
from omnibus.wire.payload import Payload

pytestmark = pytest.mark.unit


def record(*timings: StageTiming) -> Record:
    ticket = Ticket(
        rid="r", pipeline="p", route=Route(stages=()), created=0.0, deadline=9.0,
        request=Payload(data=b"", nbytes=0, media_type="text/plain"),
    )  # fmt: skip
    return Record(ticket=ticket, timings=timings)


def test_times_are_medians_of_the_requests_that_ran_the_stage() -> None:
    one = record(StageTiming(0, 0.0, 1.0, 3.0), StageTiming(1, 3.0, 3.5, 4.0))
    slow = record(StageTiming(0, 0.0, 5.0, 90.0))
    other = record(StageTiming(0, 0.0, 2.0, 3.0))
    assert stage_times([one, slow, other]) == {0: StageTimes(2.0, 2.0), 1: StageTimes(0.5, 0.5)}


def test_a_stage_that_nobody_ran_has_no_times() -> None:
    assert stage_times([record()]) == {}
