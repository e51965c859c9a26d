"""What `top`, `queue`, `replicas` and `requests` show: pure functions of a pipeline's status."""

from __future__ import annotations

import pytest

from omnibus.client.activity import activity_json, by_load, lanes_of, stages_of
from omnibus.client.cluster_view import PipelineStatus
from omnibus.client.draining import chosen
from omnibus.client.request_list import RequestFilter
from omnibus.errors import PipelineError, ReplicaMissing
from omnibus.ledger.work_queue import QueueDepth
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from omnibus.requests.record import Record
from omnibus.requests.state import RequestState
from omnibus.wire.envelope import Ticket
from omnibus.wire.failure import Failure
from omnibus.wire.payload import Payload

pytestmark = pytest.mark.unit
SPEC = PipelineSpec(
    name="p", stages=(StageSpec(stage_id=0, name="a", engine="sim"), StageSpec(stage_id=1, name="b", engine="sim"))
)


def replica(name: str, stage_id: int = 0, status: ReplicaStatus = ReplicaStatus.UP, **more: int) -> ReplicaRecord:
    return ReplicaRecord(stage_id=stage_id, replica=name, instance=name, status=status, **more)


def status(now: float = 10.0, *replicas: ReplicaRecord, **depths: QueueDepth) -> PipelineStatus:
    return PipelineStatus(SPEC, list(replicas), {name.replace("_", "-"): its for name, its in depths.items()}, now)


def test_lanes_come_by_stage_and_in_the_order_in_which_they_are_served() -> None:
    found = lanes_of(
        status(
            events=QueueDepth(1), stage_1_batch=QueueDepth(5), stage_0_r3=QueueDepth(), stage_0_batch=QueueDepth(),
            stage_0_interactive=QueueDepth(2, 1, 7.5, redelivered=1, pulls=4),
        )
    )  # fmt: skip
    assert [(one.stage, one.lane) for one in found] == [
        ("a", "interactive"), ("a", "batch"), ("a", "r3"), ("b", "batch"), (None, "events"),
    ]  # fmt: skip
    first = found[0]
    assert (first.waiting, first.in_flight, first.redelivered, first.pulls, first.oldest_seconds) == (2, 1, 1, 4, 2.5)


def test_rate_counts_deliveries_of_all_lanes_between_two_looks_and_none_of_a_consumer_made_anew() -> None:
    before = status(
        8.0,
        stage_0_interactive=QueueDepth(delivered=10),
        stage_0_batch=QueueDepth(delivered=50),
        events=QueueDepth(delivered=9),
    )
    after = status(
        10.0,
        stage_0_interactive=QueueDepth(delivered=20),
        stage_0_batch=QueueDepth(delivered=2),
        events=QueueDepth(delivered=99),
    )
    assert [one.taken_rate for one in stages_of(after, before)] == [5.0, 0.0]
    assert [one.taken_rate for one in stages_of(after)] == [None, None]


def test_slots_are_those_of_replicas_that_take_tasks_and_the_dead_are_no_replicas() -> None:
    found = stages_of(
        status(
            10.0, replica("r0", slots=4, in_flight=3), replica("r1", status=ReplicaStatus.DRAINING, slots=4, in_flight=1),
            replica("r2", status=ReplicaStatus.DOWN, slots=4),
        )
    )  # fmt: skip
    assert (found[0].busy, found[0].slots, found[0].up, found[0].replicas) == (4, 4, 1, 2)
    assert (found[1].up, found[1].replicas) == (0, 0)


def test_busiest_replica_comes_first_and_json_has_all_of_them() -> None:
    idle, full, half = replica("r0", slots=2), replica("r1", slots=2, in_flight=2), replica("r2", slots=2, in_flight=1)
    assert [one.replica for one in by_load([idle, full, half])] == ["r1", "r2", "r0"]
    shown = activity_json(status(10.0, idle, full))
    assert [(one["stage_id"], one["replica"]) for one in shown["replicas"]] == [(0, "r1"), (0, "r0")]


def test_replicas_are_chosen_by_stage_and_by_name_each_once() -> None:
    replicas = [replica("r0"), replica("r1"), replica("r0", 1), replica("r2", status=ReplicaStatus.STARTING)]
    assert [one.key for one in chosen(SPEC, replicas, ["b.r0", "a", "0.r1"])] == [(0, "r0"), (0, "r1"), (1, "r0")]


@pytest.mark.parametrize(
    ("ref", "error", "words"),
    [("a.r9", ReplicaMissing, "a.r0"), ("a.r2", ReplicaMissing, "a.r0"), ("c", PipelineError, "no stage 'c'")],
)
def test_choice_says_what_there_is_when_nobody_is_meant(ref: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        chosen(SPEC, [replica("r0"), replica("r2", status=ReplicaStatus.STARTING)], [ref])


def record(state: RequestState, *, created: float = 100.0, tenant: str = "t", failed_at: int | None = None) -> Record:
    ticket = Ticket(
        rid="r",
        pipeline="p",
        route={},
        created=created,
        deadline=created + 60,
        request=Payload.inline(b"", "application/msgpack"),
        tenant=tenant,
    )
    failure = None if failed_at is None else Failure(code="engine_error", message="no", stage_id=failed_at)
    return Record(ticket=ticket, state=state, failure=failure)


OPEN, FAILED = record(RequestState.OPEN), record(RequestState.FAILED, failed_at=1)


@pytest.mark.parametrize(
    ("wanted", "one", "at", "taken"),
    [
        (RequestFilter(), OPEN, (), True),
        (RequestFilter(states=[RequestState.FAILED]), OPEN, (), False),
        (RequestFilter(states=[RequestState.FAILED, RequestState.OPEN]), OPEN, (), True),
        (RequestFilter(stage_id=1), OPEN, (0,), False),
        (RequestFilter(stage_id=1), OPEN, (0, 1), True),
        (RequestFilter(stage_id=1), FAILED, (), True),
        (RequestFilter(stage_id=0), FAILED, (), False),
        (RequestFilter(tenant="t"), OPEN, (), True),
        (RequestFilter(tenant="u"), OPEN, (), False),
        (RequestFilter(older_than=30.0), OPEN, (), False),
        (RequestFilter(older_than=20.0), OPEN, (), True),
        (RequestFilter(newer_than=20.0), OPEN, (), False),
        (RequestFilter(newer_than=20.1), OPEN, (), True),
    ],
)
def test_request_is_listed_when_it_fits_all_that_is_asked_for(
    wanted: RequestFilter, one: Record, at: tuple[int, ...], taken: bool
) -> None:
    assert wanted.takes(one, at, now=120.0) is taken
