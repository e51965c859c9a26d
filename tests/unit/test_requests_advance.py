"""The effects of one event on its request."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from omnibus.errors import EngineError, RequestConflict
from omnibus.pipeline.route import EdgeMode, Forwarding
from omnibus.pipeline.spec import EdgeSpec, PipelineSpec, StageSpec
from omnibus.requests.admission import check_same, digest, new_record
from omnibus.requests.advance import (
    MAX_RUNS,
    advance,
    as_admitted,
    cancel,
    end_again,
    ended_effects,
    fail,
    linear_tasks,
    needs_event,
    needs_record,
    redrive,
)
from omnibus.requests.effects import Effect, KeepDead, Notify, PublishTask, Purge, SaveRecord, ScheduleDeadline, Stop
from omnibus.requests.record import ENDED_TTL, OPEN_TTL, Record
from omnibus.requests.state import TRANSITIONS, IllegalTransition, RequestState, transition
from omnibus.wire.envelope import AttemptFailed, DeadlinePassed, FinalOutput, StageFailed, StageResult, StageTiming
from omnibus.wire.failed_attempt import Attempt
from omnibus.wire.failure import Failure
from omnibus.wire.out import EndNotice, OutputReady
from omnibus.wire.payload import TEXT, Payload
from omnibus.wire.request import Request

pytestmark = pytest.mark.unit

DIRECT = Forwarding.DIRECT


def stage(stage_id: int, *sources: int, final: str | None = None) -> StageSpec:
    return StageSpec(
        stage_id=stage_id,
        name=f"s{stage_id}",
        engine="sim",
        input_sources=sources,
        final_output=final is not None,
        final_output_type=final,
    )


DIAMOND = PipelineSpec(
    name="p",
    stages=(stage(0, final="text"), stage(1, 0), stage(2, 0), stage(3, 1, 2, final="image")),
    edges=(EdgeSpec(source=0, target=2, forwarding=DIRECT),),
)


def record_of(spec: PipelineSpec = DIAMOND, **fields: object) -> Record:
    request = Request(prompt="hi")
    payload = Payload.inline(b"hi", TEXT)
    made = new_record(spec, request, rid="r", payload=payload, nonce="n", now=100.0, front="f")
    return replace(made, **fields)


def result_of(record: Record, stage_id: int, data: bytes = b"x") -> StageResult:
    out = Payload.inline(data, TEXT)
    modality = record.ticket.route[stage_id].final
    final = FinalOutput(stage_id=stage_id, modality=modality, items=(out,)) if modality else None
    timing = StageTiming(stage_id, 100.0, 101.0, 102.0)
    return StageResult(
        ticket=record.ticket, stage_id=stage_id, replica="r0", outputs={"o": out}, final=final, timings=(timing,)
    )


def failed_of(record: Record, code: str, *, dead: bool = False) -> StageFailed:
    return StageFailed(ticket=record.ticket, stage_id=1, failure=Failure(code=code, message=code), dead=dead)


def saved(effects: tuple[object, ...]) -> Record:
    (record,) = [effect.record for effect in effects if isinstance(effect, SaveRecord)]
    return record


def tasks(effects: tuple[object, ...]) -> list[int]:
    return [effect.task.stage_id for effect in effects if isinstance(effect, PublishTask)]


def test_result_of_a_linear_edge_needs_no_record() -> None:
    chain = PipelineSpec(name="p", stages=(stage(0), stage(1, 0, final="text")))
    event = result_of(record_of(chain), 0)
    assert not needs_record(event)
    assert tasks(tuple(linear_tasks(event))) == [1]


def test_final_output_is_recorded_before_the_next_tasks_are_published() -> None:
    record = record_of()
    effects = advance(result_of(record, 0), record)
    assert [type(effect) for effect in effects] == [SaveRecord, PublishTask, Notify]
    assert tasks(effects) == [1], "stage 2 is the worker's to forward"
    assert isinstance(effects[-1].message, OutputReady)


def test_recorded_event_yields_the_same_tasks_again_and_no_write() -> None:
    record = record_of()
    event = result_of(record, 0)
    once = saved(advance(event, record))
    again = advance(event, once)
    assert tasks(again) == [1]
    assert not any(isinstance(effect, SaveRecord) for effect in again)


def test_join_waits_for_every_source() -> None:
    record = record_of()
    first = advance(result_of(record, 1), record)
    assert tasks(first) == []
    second = advance(result_of(record, 2), saved(first))
    assert tasks(second) == [3]
    (join,) = [effect.task for effect in second if isinstance(effect, PublishTask)]
    assert set(join.inputs) == {1, 2}


def test_join_is_published_again_when_its_last_source_is_delivered_again() -> None:
    record = record_of()
    both = saved(advance(result_of(record, 2), saved(advance(result_of(record, 1), record))))
    assert tasks(advance(result_of(record, 2), both)) == [3]


def test_first_result_of_a_stage_counts_from_any_replica() -> None:
    record = record_of()
    first = saved(advance(result_of(record, 0, b"first"), record))
    second = advance(result_of(record, 0, b"second"), first)
    assert not any(isinstance(effect, SaveRecord) for effect in second)
    assert first.outputs[0].items[0].data == b"first"
    told = [
        effect.message for effect in second if isinstance(effect, Notify) and isinstance(effect.message, OutputReady)
    ]
    assert [output.output for output in told] == [first.outputs[0]], "never another answer than the record's"


def test_request_is_done_when_all_its_outputs_are_recorded() -> None:
    record = record_of(outputs={0: result_of(record_of(), 0).final})
    effects = advance(result_of(record, 3), record)
    assert saved(effects).state is RequestState.DONE
    assert [type(effect) for effect in effects] == [SaveRecord, Notify, Purge]
    assert effects[-1] == Purge("r", "n", queued=False), "every stage has finished: only the timer is left"


def test_notice_of_the_end_brings_all_outputs_and_the_record_keeps_no_prompt() -> None:
    record = record_of(outputs={0: result_of(record_of(), 0).final})
    done, notice, _ = advance(result_of(record, 3), record)
    assert isinstance(done, SaveRecord)
    assert isinstance(notice, Notify)
    assert isinstance(notice.message, EndNotice)
    assert notice.message.outputs == tuple(done.record.outputs.values())
    assert done.record.ticket.request.data is None
    assert saved(advance(failed_of(record, "engine_error"), record)).ticket.request == record.ticket.request, (
        "an operator may run it again"
    )


LINE = PipelineSpec(name="p", stages=(stage(0), stage(1, 0, final="text")))


def test_last_result_tells_the_whole_record_when_the_ticket_names_its_revision() -> None:
    record = record_of(LINE)
    last = result_of(replace(record, ticket=replace(record.ticket, revision=7)), 1)
    unread = as_admitted(last)
    assert unread is not None
    read, *_ = advance(last, record)
    written, *_ = advance(last, unread)
    assert isinstance(read, SaveRecord)
    assert isinstance(written, SaveRecord)
    assert replace(written.record, ticket=read.record.ticket) == read.record


def test_record_has_to_be_read_when_there_is_more_in_it_than_a_ticket_tells() -> None:
    line, join = record_of(LINE), record_of()
    joined = replace(join, ticket=replace(join.ticket, revision=7))
    assert as_admitted(result_of(line, 1)) is None, "of a later run, or of unknown revision"
    assert as_admitted(result_of(replace(line, ticket=replace(line.ticket, revision=7)), 0)) is None, "not the last"
    assert as_admitted(result_of(joined, 3)) is None, "a join"
    assert as_admitted(result_of(joined, 0)) is None, "another output is to come"


def test_end_frees_what_the_hops_stored_but_not_what_an_operator_may_run_again() -> None:
    timings = (StageTiming(0, 1.0, 2.0, 3.0, stored=2),)
    record = record_of(timings=timings)
    assert cancel(record)[-1] == Purge("r", "n", stored=True)
    assert advance(failed_of(record, "engine_error"), record)[-1] == Purge("r", "n", stored=False)


def test_end_frees_shared_memory_by_a_message_of_its_own_only_where_nothing_is_stopped() -> None:
    hosted = (StageTiming(0, 1.0, 2.0, 3.0, hosted=1),)
    record = record_of(timings=hosted, outputs={0: result_of(record_of(), 0).final})
    done = advance(result_of(record, 3), record)
    assert done[-1] == Purge("r", "n", queued=False, stored=True, hosted=True), (
        "readers elsewhere may have had it stored"
    )
    assert end_again(saved(done))[-1] == Purge("r", "n", stored=True, hosted=True), "as often as the end is repeated"
    cancelled = cancel(record)
    assert any(isinstance(effect, Stop) for effect in cancelled), "which frees it"
    assert cancelled[-1] == Purge("r", "n", stored=True)


@pytest.mark.parametrize("state", [state for state in RequestState if state.terminal])
def test_late_event_repeats_the_end_and_changes_nothing(state: RequestState) -> None:
    record = record_of(state=state)
    for event in (result_of(record, 0), failed_of(record, "engine_error"), DeadlinePassed(rid="r", deadline=400.0)):
        effects = advance(event, record)
        assert not any(isinstance(effect, SaveRecord | PublishTask) for effect in effects)
        assert isinstance(effects[-1], Purge)
        assert any(isinstance(effect, Notify) and isinstance(effect.message, EndNotice) for effect in effects)


FLOWING = PipelineSpec(
    name="p",
    stages=(stage(0), stage(1, 0, final="text")),
    edges=(EdgeSpec(source=0, target=1, mode=EdgeMode.STREAM),),
)


def removals(effects: tuple[Effect, ...]) -> list[bool]:
    """Whether flows are removed, of each removal."""
    return [effect.flowed for effect in effects if isinstance(effect, Purge)]


def test_end_removes_flows_where_there_may_be_some_and_nowhere_else() -> None:
    timings = (StageTiming(0, 0.0, 0.0, 0.0, flowed=3), StageTiming(1, 0.0, 0.0, 0.0))
    done = replace(record_of(FLOWING), state=RequestState.DONE)
    assert removals(ended_effects(replace(done, timings=timings), queued=False)) == [True]
    assert removals(ended_effects(replace(done, timings=timings[1:]), queued=False)) == [False], "none was written"
    assert removals(cancel(record_of(FLOWING))) == [True]
    assert removals(fail(record_of(FLOWING), Failure.of(EngineError()))) == [True], "another run has flows of its own"
    assert removals(cancel(record_of())) == [False]


def test_failed_attempt_after_the_end_has_its_flow_removed() -> None:
    attempt = Attempt(stage_id=0, run=1, task_seq=1, delivery=1, at=0.0, replica="r0", code="x", message="x")
    late = AttemptFailed(rid="r", attempt=attempt)
    cancelled = replace(record_of(FLOWING), state=RequestState.CANCELLED)
    assert removals(advance(late, cancelled)) == [True]
    assert advance(late, replace(record_of(), state=RequestState.CANCELLED)) == ()


def test_result_of_an_abandoned_run_is_dropped() -> None:
    record = record_of()
    assert advance(result_of(record, 0), record.next_run()) == ()


@pytest.mark.parametrize("code", ["payload_lost", "flow_broken"])
def test_lost_payload_runs_the_request_again_under_the_next_run(code: str) -> None:
    record = record_of()
    effects = advance(failed_of(record, code), record)
    assert saved(effects).ticket.run == 2
    (task,) = [effect for effect in effects if isinstance(effect, PublishTask)]
    assert task.msg_id == "task.r.0.2", "without the run, dedupe would swallow it"


def test_lost_payload_event_delivered_again_publishes_the_tasks_that_its_first_handler_did_not() -> None:
    record = record_of()
    event = failed_of(record, "payload_lost")
    assert tasks(advance(event, saved(advance(event, record)))) == [0]


def test_lost_payload_ends_the_request_when_its_runs_are_used_up() -> None:
    record = record_of()
    while record.ticket.run < MAX_RUNS:
        record = saved(redrive(record))
    assert saved(advance(failed_of(record, "payload_lost"), record)).state is RequestState.FAILED


def test_dead_letter_is_kept_also_when_the_first_handler_died_after_ending_the_request() -> None:
    record = record_of()
    event = failed_of(record, "attempts_exhausted", dead=True)
    effects = advance(event, record)
    assert any(isinstance(effect, KeepDead) for effect in effects)
    assert any(isinstance(effect, KeepDead) for effect in advance(event, saved(effects)))


def test_deadline_of_another_admission_puts_the_own_timer_back() -> None:
    record = record_of()
    early = DeadlinePassed(rid="r", deadline=record.ticket.deadline - 1)
    assert advance(early, record) == (ScheduleDeadline(record.ticket),)
    due = DeadlinePassed(rid="r", deadline=record.ticket.deadline)
    assert saved(advance(due, record)).state is RequestState.EXPIRED


def test_cancel_stops_what_runs_and_is_idempotent() -> None:
    record = record_of()
    effects = cancel(record)
    assert [type(effect) for effect in effects] == [SaveRecord, Stop, Notify, Purge]
    assert cancel(saved(effects)) == effects[1:], "all but the write: the first canceller may have died after it"


def test_worker_forwards_direct_edges_and_tells_only_what_is_needed() -> None:
    record = record_of()
    direct = list(linear_tasks(result_of(record, 0), forwarding=DIRECT))
    assert [effect.task.stage_id for effect in direct] == [2]
    chain = PipelineSpec(
        name="p",
        stages=(stage(0), stage(1, 0, final="text")),
        edges=(EdgeSpec(source=0, target=1, forwarding=DIRECT),),
    )
    route = record_of(chain).ticket.route
    assert (needs_event(route, 0), needs_event(route, 1)) == (False, False), "its last worker ends the request"
    route = record_of(LINE).ticket.route
    assert (needs_event(route, 0), needs_event(route, 1)) == (True, True)


def test_result_and_failure_of_an_earlier_request_change_nothing_when_its_id_is_taken_anew() -> None:
    later = record_of(LINE)
    earlier = replace(later, ticket=replace(later.ticket, nonce="m"))
    last = later.ticket.route.finals[0].stage_id
    assert advance(result_of(earlier, last), later) == ()
    assert advance(replace(failed_of(earlier, "engine_error"), stage_id=last), later) == ()
    assert advance(result_of(later, last), later), "its own ends it"


def test_taken_id_is_a_conflict_when_neither_call_nor_request_is_the_same() -> None:
    record = record_of()

    def other(**fields: object) -> Record:
        return replace(record, ticket=replace(record.ticket, nonce="m", **fields))

    check_same(record, record)
    check_same(record, other())
    with pytest.raises(RequestConflict):
        check_same(record, other(digest="other"))
    with pytest.raises(RequestConflict):
        check_same(record, other(tenant="other"))


def test_digest_ignores_what_does_not_change_the_answer() -> None:
    request = Request(prompt="hi", sampling_params={"a": {"x": 1}, "b": {}})
    assert digest(request) == digest(replace(request, trace={"traceparent": "t"}, priority=3))
    assert digest(request) == digest(replace(request, sampling_params={"b": {}, "a": {"x": 1}}))
    assert digest(request) != digest(replace(request, prompt="ho"))


def test_only_a_failed_request_may_be_opened_again() -> None:
    assert [state for state in RequestState if RequestState.OPEN in TRANSITIONS[state]] == [RequestState.FAILED]
    with pytest.raises(IllegalTransition):
        transition(RequestState.DONE, RequestState.OPEN)


@pytest.mark.parametrize(
    ("state", "deadline", "lifetime"),
    [
        (RequestState.OPEN, 100_000.0, 99_000.0 + OPEN_TTL),
        (RequestState.DONE, 100_000.0, ENDED_TTL),
        (RequestState.EXPIRED, 900.0, ENDED_TTL),
        (RequestState.CANCELLED, 1_100.0, ENDED_TTL),
        (RequestState.CANCELLED, 100_000.0, 99_000.0),
        (RequestState.FAILED, 100_000.0, 99_000.0),
    ],
)
def test_record_is_kept_while_its_id_is_dropped(state: RequestState, deadline: float, lifetime: float) -> None:
    """A retry under the same idempotency key would be accepted, and its tasks be dropped as those of the cancelled one."""
    record = record_of()
    record = replace(record, state=state, ticket=replace(record.ticket, deadline=deadline))
    assert record.lifetime(1_000.0) == lifetime
