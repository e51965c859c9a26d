"""Names on the broker."""

from __future__ import annotations

import pytest

from omnibus.errors import InvalidName, InvalidRequest
from omnibus.wire import stores, subjects
from omnibus.wire.names import check_name

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ["a", "A-b_9", "x" * 64])
def test_check_name_returns_the_name_when_it_is_one_token(name: str) -> None:
    assert check_name(name, "rid") == name


@pytest.mark.parametrize("name", ["", "x" * 65, "a.b", "a b", "*", ">", "a\n", "ü", "a/b"])
def test_check_name_refuses_when_a_name_could_change_the_subject(name: str) -> None:
    with pytest.raises(InvalidName, match="rid must match") as caught:
        check_name(name, "rid")
    assert caught.value.http_status == 400
    assert caught.value.param == "rid"


def test_names_follow_the_design_when_built() -> None:
    assert subjects.request("p", "r1") == "omni.p.request.r1"
    assert subjects.task("p", 2, "batch", "r1") == "omni.p.task.2.batch.r1"
    assert subjects.event("p", 2, "result", "r1") == "omni.p.event.2.result.r1"
    assert subjects.deadline_event("p", "r1") == "omni.p.event.any.deadline.r1"
    assert subjects.timer("p", "n1", "r1") == "omni.p.timer.n1.r1"
    assert subjects.out("p", "f1", "r1") == "omni.p.out.f1.r1"
    assert subjects.ctl("p", 0, "a") == "omni.p.ctl.0.a"
    assert subjects.ctl_all("p") == "omni.p.ctl.all"
    assert subjects.claim("p", 0, "a") == "omni.p.claim.0.a"
    assert stores.requests_stream("p") == "OMNI_p_REQUESTS"
    assert stores.work_stream("p") == "OMNI_p_WORK"
    assert stores.replicas_bucket("p") == "omni-p-replicas"
    assert stores.requests_bucket("p") == "omni-p-requests"
    assert stores.payloads_bucket("p") == "omni-p-payloads"
    assert stores.stage_consumer(1, "interactive") == "stage-1-interactive"


@pytest.mark.parametrize(
    "build",
    [
        lambda bad: subjects.request("p", bad),
        lambda bad: subjects.task("p", 0, bad, "r"),
        lambda bad: subjects.task("p", 0, "batch", bad),
        lambda bad: subjects.event("p", bad, "result", "r"),
        lambda bad: subjects.purge_filter("p", bad),
        lambda bad: subjects.out("p", bad, "r"),
        lambda bad: subjects.claim("p", 0, bad),
        stores.work_stream,
        lambda bad: subjects.timer(bad, "n", "r"),
        lambda bad: subjects.timer("p", bad, "r"),
    ],
)
def test_builders_refuse_when_a_part_is_not_one_token(build: object) -> None:
    with pytest.raises(InvalidName):
        build("a.>")  # type: ignore[operator]


def test_purge_filter_covers_tasks_and_events_when_matched_token_by_token() -> None:
    pattern = subjects.purge_filter("p", "r1").split(".")
    for subject in (
        subjects.task("p", 0, "interactive", "r1"),
        subjects.task("p", 7, "replica-3", "r1"),
        subjects.event("p", 3, "failed", "r1"),
        subjects.deadline_event("p", "r1"),
    ):
        tokens = subject.split(".")
        assert len(tokens) == len(pattern)
        assert all(want in ("*", got) for want, got in zip(pattern, tokens, strict=True))


def test_parsers_invert_builders_when_given_their_subjects() -> None:
    assert subjects.parse_task("omni.p.task.2.batch.r1") == subjects.TaskSubject("p", 2, "batch", "r1")
    assert subjects.parse_event("omni.p.event.2.final.r1") == subjects.EventSubject(
        "p", 2, subjects.EventKind.FINAL, "r1"
    )
    assert subjects.parse_event(subjects.deadline_event("p", "r1")).stage_id is None
    assert subjects.parse_rid("omni.p.request.r1") == "r1"


@pytest.mark.parametrize(
    ("parse", "subject"),
    [
        (subjects.parse_task, "omni.p.event.2.result.r1"),
        (subjects.parse_task, "omni.p.task.x.batch.r1"),
        (subjects.parse_task, "omni.p.task.2.batch"),
        (subjects.parse_event, "omni.p.event.2.unheard-of.r1"),
        (subjects.parse_event, "omni.p.event.x.result.r1"),
        (subjects.parse_event, "other.p.event.2.result.r1"),
    ],
)
def test_parsers_refuse_when_the_subject_is_another(parse: object, subject: str) -> None:
    with pytest.raises(InvalidRequest):
        parse(subject)  # type: ignore[operator]


def test_message_ids_differ_when_only_the_run_differs() -> None:
    assert subjects.message_id("task", "r", 1, 0) != subjects.message_id("task", "r", 1, 1)
