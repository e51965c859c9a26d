"""The effects of an event on its request: pure, without clock, I/O or NATS.

`advance` is idempotent: an event that the record already holds yields the same effects again, because the shell that saw it
first may have died before it performed them. A result counts from any replica; only its run is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from omnibus.errors import DeadlineExceeded, FlowBroken, PayloadLost, RequestCancelled
from omnibus.pipeline.route import Forwarding, Route
from omnibus.requests.effects import (
    DropDead,
    Effect,
    KeepDead,
    Notify,
    PublishTask,
    Purge,
    SaveRecord,
    ScheduleDeadline,
    Stop,
)
from omnibus.requests.record import Record
from omnibus.requests.state import RequestState
from omnibus.wire.envelope import (
    AttemptFailed,
    DeadlinePassed,
    Event,
    FinalOutput,
    StageFailed,
    StageResult,
    StageTiming,
    Task,
    Ticket,
)
from omnibus.wire.failure import Failure
from omnibus.wire.out import EndNotice, OutputReady
from omnibus.wire.payload import CARRIED_LIMIT, Payloads

MAX_RUNS = 5
"""Runs that one request may use up before a lost payload ends it."""
_LOST = frozenset({PayloadLost.code, FlowBroken.code})
"""Codes of failures that another run may mend."""
_EXPIRED = Failure.of(DeadlineExceeded())
_NOTHING: Mapping[int, FinalOutput] = {}


def needs_record(event: Event) -> bool:
    """Whether `advance` is to be asked: always, but for a result that only passes along linear edges (`linear_tasks`)."""
    if not isinstance(event, StageResult):
        return True
    stage = event.ticket.route[event.stage_id]
    return stage.final is not None or any(event.ticket.route[target.stage_id].is_join for target in stage.targets)


def advance(event: Event, record: Record) -> tuple[Effect, ...]:
    """Effects of an event on its record. An event without one has none: its request ended long ago, and is forgotten."""
    match event:
        case DeadlinePassed():
            return _deadline(event, record)
        case AttemptFailed():
            return _note(event, record)
        case _ if record.state.terminal:
            return end_again(record)
        case StageResult(ticket=ticket) | StageFailed(ticket=ticket) if ticket.nonce != record.nonce:
            return ()  # of an earlier request under this id, whose record has lapsed
        case StageFailed():
            return _failed(event, record)
        case StageResult():
            return _result(event, record)


def as_admitted(event: Event) -> Record | None:
    """The record that a result ends, as its admission wrote it under the ticket's revision; None where it has to be read.

    Invariant: whatever happens to a request besides changes its record, and so the revision that the end must name.
    """
    match event:
        case StageResult(ticket=ticket, stage_id=stage, final=FinalOutput()) if ticket.revision:
            return Record(ticket=ticket) if ticket.route.ends_with(stage) else None
    return None


def linear_tasks(result: StageResult, *, forwarding: Forwarding = Forwarding.ORCHESTRATOR) -> Iterator[PublishTask]:
    """Tasks of the stages that need nothing but this result, over edges of one forwarding mode.

    The one routing function: an orchestrator calls it for its edges, a worker for the direct ones. Stages that read a flow
    have begun before (`flow_tasks`).
    """
    route = result.ticket.route
    for target in route[result.stage_id].whole_targets:
        if target.forwarding is forwarding and not route[target.stage_id].is_join:
            inputs = {result.stage_id: result.outputs}
            yield _task(result.ticket, target.stage_id, inputs, result.timings)


def flow_tasks(task: Task, published: float) -> Iterator[PublishTask]:
    """Tasks of the stages that read the flow of this one, once its first chunk is stored."""
    ticket = task.ticket.without_request(above=CARRIED_LIMIT)
    for target in ticket.route[task.stage_id].streams_to:
        yield PublishTask(
            Task(ticket=ticket, stage_id=target, published=published, flow=task.stage_id, timings=task.timings)
        )


def needs_event(route: Route, stage_id: int) -> bool:
    """Whether a finished stage needs an orchestrator.

    Not when all its edges are direct or streams, and its worker ends what it must end.
    """
    stage = route[stage_id]
    if route.is_ended_by_worker(stage_id):
        return False
    is_forwarded = any(target.forwarding is Forwarding.ORCHESTRATOR for target in stage.whole_targets)
    return stage.final is not None or is_forwarded


def entry_tasks(ticket: Ticket, published: float) -> Iterator[PublishTask]:
    """Tasks of the stages that start from the request itself."""
    for stage in ticket.route.entries:
        yield PublishTask(Task(ticket=ticket, stage_id=stage.stage_id, published=published))


def redrive(record: Record) -> tuple[Effect, ...]:
    """Run a request again from its input, under the next run number."""
    again = record.next_run()
    return (SaveRecord(again), *entry_tasks(again.ticket, again.ticket.created))


def cancel(record: Record, partial: Mapping[int, FinalOutput] = _NOTHING) -> tuple[Effect, ...]:
    """End a request that its producer cancels, with its partial texts; an ended one stays as it is.

    One that was cancelled before is stopped once more: the first canceller may have died before the stop went out.
    """
    if record.state.terminal:
        return end_again(record) if record.state is RequestState.CANCELLED else ()
    known = replace(record, outputs={**partial, **record.outputs})
    return _end(known, RequestState.CANCELLED, Failure.of(RequestCancelled()))


def fail(record: Record, failure: Failure, *, dead: bool = False) -> tuple[Effect, ...]:
    """End a request as failed, and where asked as a dead letter; an ended one stays as it is."""
    return _end(replace(record, dead=record.dead or (dead and not record.state.terminal)), RequestState.FAILED, failure)


def ended_effects(record: Record, *, queued: bool = True) -> tuple[Effect, ...]:
    """Make the effects of the end of a request, which are repeated whenever a late event finds it ended.

    Payloads of a failed request stay, since an operator may run it again; the store's own lifetime removes them. Of one whose
    queue is known to be empty, the record tells whether anything was stored.
    """
    # What is in a host's memory is stored, too, where a reader on another host asked for it.
    has_stored = (
        bool(record.ticket.request.locations)
        or record.ticket.resumable
        or any(timing.stored or timing.hosted for timing in record.timings)
    )
    stored = record.state is not RequestState.FAILED and (queued or has_stored)
    is_done = record.state is RequestState.DONE
    # What is done has nothing running any more; every other end may leave stages at work.
    stop = () if is_done else (Stop(record.rid, record.ticket.deadline, record.ticket.run),)
    return (*stop, *_notify(record, end_notice(record)), purge_of(record, queued=queued, stored=stored))


def end_notice(record: Record) -> EndNotice:
    """The notice of a request's end, with all outputs of one that is done."""
    outputs = tuple(record.outputs.values()) if record.state is RequestState.DONE else ()
    return EndNotice(
        rid=record.rid, state=record.state, run=record.ticket.run, outputs=outputs, timings=record.timings
    )  # fmt: skip


def orphan_effects(record: Record | None, *, queued: bool = False) -> tuple[Effect, ...]:
    """Clear up what is there of a request after its end.

    Where something is `queued`, all effects of its end are repeated: it may be the very event that was to have that
    repeated. Otherwise what is stored is removed, unless an operator may run the request again. Nothing is done while it is
    open, as its end will do it; nor for an id that the ledger does not know, as its admission may be under way.
    """
    if record is None or record.state is RequestState.OPEN:
        return ()
    if queued:
        return end_again(record)
    return (purge_of(record, queued=False, stored=record.state is not RequestState.FAILED),)


def purge_of(record: Record, *, queued: bool = True, stored: bool = False) -> Purge:
    """Remove what is left of an ended request. Where it was stopped, that frees what is in shared memory."""
    is_done = record.state is RequestState.DONE
    hosted = is_done and any(timing.hosted for timing in record.timings)
    # What a first run has done tells of all its flows; an attempt that was given up may have left one elsewhere.
    is_known = is_done and record.ticket.run == 1 and not stored
    flowed = any(timing.flowed for timing in record.timings) if is_known else record.ticket.route.may_flow
    resumable = record.ticket.resumable
    return Purge(
        record.rid, record.nonce, record.ticket.run, queued=queued, stored=stored, hosted=hosted,
        flowed=flowed or resumable, resumable=resumable,
    )  # fmt: skip


def _result(event: StageResult, record: Record) -> tuple[Effect, ...]:
    if event.ticket.run < record.ticket.run:
        return ()  # of a run that was given up
    merged = _merge(event, record)
    tasks = (*linear_tasks(event), *_ready_joins(event, merged))
    if len(merged.outputs) == len(merged.ticket.route.finals):
        done = merged.ended(RequestState.DONE)
        return (SaveRecord(done), *_dead_letter(done), *ended_effects(done, queued=done.ticket.run > 1))
    # What the record holds, which is the first attempt's: a follower may have missed that one.
    notified = (
        _notify(merged, OutputReady(rid=merged.rid, output=merged.outputs[event.stage_id])) if event.final else ()
    )
    # A record that already holds the event is not written again; its tasks are published again.
    save = () if merged == record else (SaveRecord(merged),)
    return (*save, *tasks, *notified)


def _merge(event: StageResult, record: Record) -> Record:
    """The record with what the event brings; the first result of a stage counts."""
    route, source = record.ticket.route, event.stage_id
    outputs, arrived, timings = record.outputs, record.arrived, record.timings
    if event.final is not None and source not in outputs:
        outputs = {**outputs, source: event.final}
    feeds_join = any(route[target.stage_id].is_join for target in route[source].targets)
    if feeds_join and source not in arrived:
        arrived = {**arrived, source: event.outputs}
    known = {timing.stage_id for timing in timings}
    timings = (*timings, *(timing for timing in event.timings if timing.stage_id not in known))
    return replace(record, outputs=outputs, arrived=arrived, timings=timings)


def _ready_joins(event: StageResult, record: Record) -> Iterator[PublishTask]:
    route = record.ticket.route
    for target in route[event.stage_id].targets:
        join = route[target.stage_id]
        if join.is_join and all(source in record.arrived for source in join.sources):
            inputs = {source: record.arrived[source] for source in join.sources}
            yield _task(record.ticket, join.stage_id, inputs, record.timings)


def _payload_lost(event: StageFailed, record: Record) -> tuple[Effect, ...]:
    lost, now = event.ticket.run, record.ticket.run
    if lost == now:
        return redrive(record) if now < MAX_RUNS else _give_up(event, record)
    # Invariant: this event may have raised the run itself, and its shell died before the tasks were published.
    return tuple(entry_tasks(record.ticket, record.ticket.created)) if lost == now - 1 else ()


def _failed(event: StageFailed, record: Record) -> tuple[Effect, ...]:
    if event.failure.code in _LOST:
        return _payload_lost(event, record)
    return () if event.ticket.run < record.ticket.run else _give_up(event, record)


def _give_up(event: StageFailed, record: Record) -> tuple[Effect, ...]:
    return fail(record.noting(event.attempt), event.failure, dead=event.dead)


def _note(event: AttemptFailed, record: Record) -> tuple[Effect, ...]:
    """Into the history of a request that is open or has failed: the news may come after the end that they explain."""
    noted = record.noting(event.attempt)
    # An attempt that did not know of the end may have written to a flow since, and nobody else would know of that.
    is_late = record.state.terminal and record.ticket.route.may_flow
    purged = (purge_of(record, queued=False, stored=record.state is not RequestState.FAILED),) if is_late else ()
    if noted is record or record.state not in (RequestState.OPEN, RequestState.FAILED):
        return purged
    return (SaveRecord(noted), *_dead_letter(noted), *purged)


def _deadline(event: DeadlinePassed, record: Record) -> tuple[Effect, ...]:
    if event.deadline < record.ticket.deadline and not record.state.terminal:
        # The timer of an attempt to admit the same request again, or of a run before an operator's retry.
        return (ScheduleDeadline(record.ticket),)
    # A request that an operator ran again fails, so that its dead letter is of use once more.
    return _end(record, RequestState.FAILED if record.dead else RequestState.EXPIRED, _EXPIRED)


def _end(record: Record, state: RequestState, failure: Failure) -> tuple[Effect, ...]:
    if record.state.terminal:
        return end_again(record)
    ended = record.ended(state, failure)
    return (SaveRecord(ended), *end_again(ended))


def end_again(record: Record) -> tuple[Effect, ...]:
    """All of an end but the write: the shell that ended the request may have died before it came to this."""
    return (*_dead_letter(record), *ended_effects(record))


def _dead_letter(record: Record) -> tuple[KeepDead | DropDead, ...]:
    """Decide about the dead letter at an end: it is kept while an operator may have use for it."""
    if not record.dead or not record.state.terminal:
        return ()
    return (KeepDead(record),) if record.state is RequestState.FAILED else (DropDead(record),)


def _notify(record: Record, message: OutputReady | EndNotice) -> tuple[Notify, ...]:
    front = record.ticket.front
    return () if front is None else (Notify(front, message),)


def _task(ticket: Ticket, stage_id: int, inputs: dict[int, Payloads], timings: tuple[StageTiming, ...]) -> PublishTask:
    published = max((timing.finished for timing in timings), default=ticket.created)
    ticket = ticket.without_request(above=CARRIED_LIMIT)
    return PublishTask(Task(ticket=ticket, stage_id=stage_id, published=published, inputs=inputs, timings=timings))
