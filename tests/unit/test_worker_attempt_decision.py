"""Which deliveries are run, and what a failed attempt means."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from omnibus.errors import (
    AttemptsExhausted,
    EngineError,
    EngineRejected,
    InvalidRequest,
    OmnibusError,
    PayloadLost,
    StageTimeout,
)
from omnibus.pipeline.route import Route, RouteStage
from omnibus.requests.cancellations import Cancellations
from omnibus.wire import codec, subjects
from omnibus.wire.envelope import VERSION, Task, Ticket
from omnibus.wire.payload import TEXT, Payload
from omnibus.workers.attempt_decision import (
    Disposition,
    GiveUp,
    Retry,
    after_failure,
    decode_task,
    disposition_of,
    exhausted,
)

pytestmark = pytest.mark.unit

NOW = 1000.0


def make_task(*, deadline: float = NOW + 60, max_attempts: int = 3) -> Task:
    route = Route((RouteStage(stage_id=0, sources=(), targets=(), final="text"),))
    ticket = Ticket(
        rid="r", pipeline="p", route=route, created=NOW, deadline=deadline,
        request=Payload.inline(b"{}", TEXT), max_attempts=max_attempts,
    )  # fmt: skip
    return Task(ticket=ticket, stage_id=0, published=NOW)


def test_task_is_refused_when_a_later_version_made_it() -> None:
    subject = subjects.task("p", 0, "interactive", "r")
    task = make_task()
    assert decode_task(codec.encode(task), subject, 0) == task
    with pytest.raises(InvalidRequest, match=f"version {VERSION + 1}; this worker reads up to {VERSION}"):
        decode_task(codec.encode(replace(task, v=VERSION + 1)), subject, 0)


@pytest.mark.parametrize(
    ("delivered", "cancelled", "deadline", "disposition"),
    [
        (1, False, NOW + 1, Disposition.RUN),
        (2, False, NOW + 1, Disposition.RUN),
        (3, False, NOW + 1, Disposition.RUN_ISOLATED),
        (4, False, NOW + 1, Disposition.EXHAUSTED),
        (1, True, NOW + 1, Disposition.DROP),
        (4, True, NOW + 1, Disposition.DROP),
        (1, False, NOW, Disposition.DROP),
    ],
)
def test_disposition_of_a_delivery(delivered: int, cancelled: bool, deadline: float, disposition: Disposition) -> None:
    task = make_task(deadline=deadline)
    assert disposition_of(task, delivered=delivered, cancelled=cancelled, now=NOW) is disposition


@pytest.mark.parametrize(
    ("delivered", "max_attempts", "disposition"),
    [
        (1, 3, Disposition.RUN),
        (2, 3, Disposition.RUN),
        (3, 3, Disposition.PUT_BACK),
        (2, 2, Disposition.PUT_BACK),
        (1, 1, Disposition.RUN),
    ],
)
def test_last_attempts_do_not_share_a_replica(delivered: int, max_attempts: int, disposition: Disposition) -> None:
    task = make_task(max_attempts=max_attempts)
    assert disposition_of(task, delivered=delivered, cancelled=False, now=NOW, has_last_attempt=True) is disposition


def test_engine_error_is_retried_with_growing_delay_when_attempts_are_left() -> None:
    task = make_task(max_attempts=20)
    verdicts = [after_failure(EngineError("x"), task, delivered=n, replica="r0") for n in range(1, 20)]
    delays = [disposition.delay for disposition in verdicts if isinstance(disposition, Retry)]
    assert len(delays) == 19
    assert delays == sorted(delays)
    assert delays[0] < 0.2
    assert delays[-1] <= 5.0


def test_engine_error_ends_the_request_as_dead_when_it_was_the_last_attempt() -> None:
    disposition = after_failure(EngineError("broken"), make_task(), delivered=3, replica="r7")
    assert isinstance(disposition, GiveUp)
    assert disposition.dead
    failure = disposition.failure
    assert (failure.code, failure.attempts, failure.stage_id, failure.replica) == ("engine_error", 3, 0, "r7")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (EngineRejected("no"), 400),
        (InvalidRequest("no"), 400),
        (PayloadLost("gone"), 500),
        (StageTimeout("long"), 504),
    ],
)
def test_error_of_the_request_ends_it_at_once_and_not_as_dead(error: OmnibusError, status: int) -> None:
    disposition = after_failure(error, make_task(), delivered=1, replica="r0")
    assert isinstance(disposition, GiveUp)
    assert not disposition.dead
    assert (disposition.failure.http_status, disposition.failure.attempts) == (status, 0)


def test_exhausted_tells_how_many_attempts_were_used() -> None:
    disposition = exhausted(make_task(), delivered=4, replica="r0")
    assert disposition.dead
    assert (disposition.failure.code, disposition.failure.attempts) == (AttemptsExhausted.code, 3)


def test_cancelled_id_is_held_until_its_deadline() -> None:
    cancelled = Cancellations()
    cancelled.add(["a", "b"], until=10.0)
    cancelled.add(["a"], until=20.0)
    assert cancelled.holds("a", 9.0, run=1)
    assert cancelled.holds("b", 9.0, run=1)
    assert cancelled.holds("a", 15.0, run=1)
    assert not cancelled.holds("b", 15.0, run=1)
    assert not cancelled.holds("a", 20.0, run=1)


def test_oldest_ids_are_forgotten_when_there_are_too_many() -> None:
    cancelled = Cancellations(most=10)
    for index in range(100):
        cancelled.add([f"r{index}"], until=1000.0 + index)
    assert not cancelled.holds("r89", 0.0, run=1)
    assert all(cancelled.holds(f"r{index}", 0.0, run=1) for index in range(90, 100))


@pytest.mark.parametrize("until", [float("nan"), 0.0, -1.0])
def test_nothing_is_remembered_of_an_id_that_ends_at_no_time(until: float) -> None:
    cancelled = Cancellations(most=10)
    cancelled.add([f"r{index}" for index in range(100)], until=until)
    assert not cancelled._known
    assert not cancelled._ends


def test_memory_is_bounded_when_one_id_is_cancelled_again_and_again() -> None:
    cancelled = Cancellations(most=10)
    for index in range(1000):
        cancelled.add(["a", "x" * 1000], until=1000.0 + index)
    assert len(cancelled._ends) <= 20
    assert cancelled.holds("a", 1900.0, run=1)


def test_run_that_an_operator_opened_is_not_held_when_the_failed_one_is() -> None:
    cancelled = Cancellations()
    cancelled.add(["a"], until=10.0, run=2)
    cancelled.add(["a"], until=10.0, run=1)
    assert cancelled.holds("a", 0.0, run=2)
    assert not cancelled.holds("a", 0.0, run=3)
    cancelled.add(["a"], until=10.0)
    assert cancelled.holds("a", 0.0, run=3)


@pytest.mark.parametrize(
    ("delivered", "disposition"), [(2, Disposition.REROUTE), (3, Disposition.REROUTE), (4, Disposition.EXHAUSTED)]
)
def test_task_is_rerouted_when_it_was_tried_on_the_lane_of_one_replica(
    delivered: int, disposition: Disposition
) -> None:
    assert disposition_of(make_task(), delivered=delivered, cancelled=False, now=NOW, redelivered=True) is disposition
