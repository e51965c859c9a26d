"""The waterfall of `omnibus trace`, from records alone."""

from __future__ import annotations

import pytest

from omnibus.cli.trace import bar
from omnibus.client.request_position import StagePosition
from omnibus.client.request_trace import Span, spans_of
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire.envelope import StageTiming
from omnibus.wire.failed_attempt import Attempt

SPEC = PipelineSpec(
    name="p", stages=(StageSpec(stage_id=0, name="a", engine="sim"), StageSpec(stage_id=1, name="b", engine="sim"))
)


def test_spans_follow_each_other_when_stages_do_and_failed_attempts_stand_among_them() -> None:
    failed = Attempt(stage_id=1, run=1, task_seq=7, delivery=1, at=104.0, code="engine_error", message="no")
    timings = (StageTiming(1, 103.0, 105.0, 106.0), StageTiming(0, 100.5, 101.0, 103.0))
    found = spans_of(SPEC, 100.0, timings, (failed,))
    assert found == [
        Span("a", "waited", 0.5, 1.0),
        Span("a", "ran", 1.0, 3.0),
        Span("b", "waited", 3.0, 5.0),
        Span("b", "failed", 4.0, 4.0),
        Span("b", "ran", 5.0, 6.0),
    ]
    assert [bar(one, 6.0).strip()[0] for one in found] == [".", "#", ".", "!", "#"]


def test_open_request_is_at_its_stages_until_now_when_it_waits_or_runs() -> None:
    at = (StagePosition(stage_id=1, queued=103.0, replica=None), StagePosition(stage_id=0, queued=101.0, replica="r0"))
    assert spans_of(SPEC, 100.0, (), (), at, now=104.5) == [
        Span("a", "running", 1.0, 4.5),
        Span("b", "waiting", 3.0, 4.5),
    ]
    early = spans_of(SPEC, 100.0, (), (), at, now=99.0)
    assert [one.end - one.start for one in early] == [0.0, 0.0], "this machine's clock is behind the server's"
    assert [bar(one, 4.5).strip()[0] for one in early] == ["=", "."]


def test_stage_has_one_wait_and_one_run_when_message_and_record_both_tell_them() -> None:
    found = spans_of(SPEC, 100.0, (StageTiming(0, 100.0, 101.0, 102.0), StageTiming(0, 100.0, 101.5, 103.0)), ())
    assert found == [Span("a", "waited", 0.0, 1.5), Span("a", "ran", 1.5, 3.0)]


def test_no_span_ends_before_it_begins_when_clocks_of_hosts_differ() -> None:
    found = spans_of(SPEC, 100.0, [StageTiming(0, 99.9, 99.8, 101.0)], ())
    assert [(one.start, one.end - one.start >= 0) for one in found] == [(0.0, True), (0.0, True)]


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.0), (0.0, 1.0), (0.999, 1.0), (1.0, 1.0), (0.4, 0.401)])
def test_bar_is_seen_and_within_its_line_wherever_the_span_is(start: float, end: float) -> None:
    line = bar(Span("a", "ran", start, end), 1.0)
    assert "#" in line
    assert len(line) <= 50
