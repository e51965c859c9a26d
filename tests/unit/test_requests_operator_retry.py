"""An operator's retry of a dead letter, and its refusals."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from omnibus.errors import RequestConflict
from omnibus.pipeline.route import Route, RouteStage
from omnibus.requests.advance import advance, fail
from omnibus.requests.effects import CreateRecord, DropDead, Effect, KeepDead, PublishTask, SaveRecord, ScheduleDeadline
from omnibus.requests.operator_retry import Renewal, resume, retry
from omnibus.requests.record import MOST_ATTEMPTS, DeadLetter, Record
from omnibus.requests.state import RequestState
from omnibus.wire.envelope import AttemptFailed, DeadlinePassed, FinalOutput, StageFailed, Ticket
from omnibus.wire.failed_attempt import MESSAGE_LIMIT, Attempt
from omnibus.wire.failure import Failure
from omnibus.wire.payload import TEXT, Payload

pytestmark = pytest.mark.unit

ROUTE = Route((RouteStage(stage_id=0, sources=(), targets=(), final="text"),))
OTHER_ROUTE = Route((RouteStage(stage_id=4, sources=(), targets=(), final="text"),))
FAILURE = Failure(code="engine_error", message="broken")
INPUT = Payload.inline(b"again", TEXT)
OUTPUT = FinalOutput(stage_id=0, modality="text", items=())


def failed_record(*, nonce: str = "n", **fields: object) -> Record:
    ticket = Ticket(
        rid="r", pipeline="p", route=ROUTE, created=100.0, deadline=160.0, request=Payload.inline(b"once", TEXT),
        nonce=nonce, digest="d",
    )  # fmt: skip
    made = Record(ticket=ticket, state=RequestState.FAILED, failure=FAILURE, dead=True)
    return replace(made, **fields)


def renewal(route: Route = ROUTE) -> Renewal:
    return Renewal(payload=INPUT, route=route, max_attempts=3, now=1000.0)


def dead_letter_of(record: Record) -> DeadLetter:
    return DeadLetter(record=record, died=200.0)


def attempt(number: int, message: str = "broken") -> Attempt:
    return Attempt(stage_id=0, run=1, task_seq=7, delivery=number, at=1.0, code="engine_error", message=message)


def written(effects: tuple[Effect, ...]) -> Record:
    (record,) = [effect.record for effect in effects if isinstance(effect, SaveRecord | CreateRecord)]
    return record


def test_retry_opens_the_record_between_two_timers_and_publishes_afterwards() -> None:
    record = failed_record()
    effects = retry(dead_letter_of(record), record, renewal())
    assert [type(effect) for effect in effects] == [ScheduleDeadline, SaveRecord, ScheduleDeadline, PublishTask]
    again = written(effects)
    assert (again.state, again.failure, again.dead) == (RequestState.OPEN, None, True)
    ticket = again.ticket
    assert (ticket.run, ticket.created, ticket.deadline, ticket.max_attempts) == (2, 1000.0, 1060.0, 3)
    assert ticket.request == INPUT
    assert [effect.msg_id for effect in effects if isinstance(effect, PublishTask)] == ["task.r.0.2"]


def test_retry_creates_the_record_when_it_has_expired() -> None:
    effects = retry(dead_letter_of(failed_record()), None, renewal())
    assert isinstance(effects[1], CreateRecord)
    assert written(effects).ticket.run == 2


def test_outputs_are_kept_when_the_route_is_the_same_and_not_otherwise() -> None:
    record = failed_record(outputs={0: OUTPUT})
    assert written(retry(dead_letter_of(record), record, renewal())).outputs == {0: OUTPUT}
    assert written(retry(dead_letter_of(record), record, renewal(OTHER_ROUTE))).outputs == {}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"nonce": "m"}, "another request"),
        ({"state": RequestState.OPEN}, "runs again already"),
        ({"state": RequestState.DONE}, "is done"),
        ({"state": RequestState.CANCELLED}, "is cancelled"),
    ],
)
def test_retry_is_refused_when_the_record_says_otherwise(fields: dict[str, object], why: str) -> None:
    with pytest.raises(RequestConflict, match=why):
        retry(dead_letter_of(failed_record()), failed_record(**fields), renewal())


def test_resumed_run_is_another_one_with_its_timer() -> None:
    opened = failed_record().next_run()
    effects = resume(opened)
    assert isinstance(effects[0], ScheduleDeadline)
    assert written(effects).ticket.run == opened.ticket.run + 1


def test_attempts_are_noted_once_and_the_oldest_give_way() -> None:
    record = failed_record(state=RequestState.OPEN)
    for number in range(MOST_ATTEMPTS + 3):
        for _ in range(2):
            record = record.noting(attempt(number))
    assert [one.delivery for one in record.attempts] == list(range(3, MOST_ATTEMPTS + 3))


def test_messages_of_attempts_are_bounded() -> None:
    assert len(attempt(1, "x" * 10**6).message) == MESSAGE_LIMIT


@pytest.mark.parametrize("state", RequestState)
def test_failed_attempt_is_noted_in_open_and_failed_records_alone(state: RequestState) -> None:
    """The event may come after the end that it explains; then the dead letter is written again."""
    effects = advance(AttemptFailed(rid="r", attempt=attempt(1)), failed_record(state=state))
    kinds = {RequestState.OPEN: [SaveRecord], RequestState.FAILED: [SaveRecord, KeepDead]}.get(state, [])
    assert [type(effect) for effect in effects] == kinds
    if effects:
        again = advance(AttemptFailed(rid="r", attempt=attempt(1)), written(effects))
        assert again == ()


def test_dead_letter_is_kept_when_a_retried_request_fails_for_any_reason_and_dropped_when_it_is_cancelled() -> None:
    opened = failed_record().next_run()
    late = DeadlinePassed(rid="r", deadline=opened.ticket.deadline)
    refused = StageFailed(ticket=opened.ticket, stage_id=0, failure=Failure(code="engine_rejected", message="no"))
    for effects in (advance(late, opened), advance(refused, opened), fail(opened, FAILURE)):
        assert written(effects).state is RequestState.FAILED
        assert any(isinstance(effect, KeepDead) for effect in effects)
    cancelled = opened.ended(RequestState.CANCELLED)
    assert any(isinstance(effect, DropDead) for effect in advance(refused, cancelled))
