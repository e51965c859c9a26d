"""The subjects of messages, built here and nowhere else; `stores.py` has the names of what keeps them.

P is the pipeline. Subjects of a request's work all have six tokens and end in the request's id, so that one filter,
`omni.P.*.*.*.<rid>`, purges or finds everything that is queued for it. Its timer has a subject of its own.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from omnibus.errors import InvalidRequest
from omnibus.wire import stores
from omnibus.wire.names import check_name, is_name

BATCHES_FILTER, VIDEOS_FILTER = "omni-batches.*", "omni-videos.*"
RESPONSES_FILTER, WEBHOOKS_FILTER = "omni-responses.*", "omni-webhooks.*"
"""The subjects of the queues of jobs and webhooks."""
INPUT = "input"
"""The stage token of the flow that a producer writes: the open input of a request, which belongs to no run."""
ANY_STAGE = "any"
"""The stage token of events that belong to no stage."""

_WORK_TOKENS = 6
_RID_OF_CHUNKS = 3
_OUT_TOKENS = 5


class EventKind(StrEnum):
    """The kinds of events for orchestrators."""

    RESULT = "result"
    """A stage finished."""
    FINAL = "final"
    """A stage finished whose output is delivered."""
    FAILED = "failed"
    """A stage gave up."""
    ATTEMPT = "attempt"
    """An attempt failed, and there will be another."""
    DEADLINE = "deadline"
    """The request's timer fired."""


class TaskSubject(msgspec.Struct, frozen=True):
    """The parts of a task's subject."""

    pipeline: str
    stage_id: int
    lane: str
    rid: str


class EventSubject(msgspec.Struct, frozen=True):
    """The parts of an event's subject; `stage_id` is None for events that belong to no stage."""

    pipeline: str
    stage_id: int | None
    kind: EventKind
    rid: str


# Subjects in streams


def request(pipeline: str, rid: str) -> str:
    """The subject on which any producer publishes a request."""
    return f"{_root(pipeline)}.request.{check_name(rid, 'rid')}"


def task(pipeline: str, stage_id: int, lane: str, rid: str) -> str:
    """A task for a stage, on one of its lanes (or on a replica's own lane)."""
    return f"{_root(pipeline)}.task.{stage_id}.{check_name(lane, 'lane')}.{check_name(rid, 'rid')}"


def event(pipeline: str, stage: int | str, kind: EventKind | str, rid: str) -> str:
    """An event for the orchestrators; `stage` is a stage id or ANY_STAGE."""
    stage_token = check_name(str(stage), "stage")
    return f"{_root(pipeline)}.event.{stage_token}.{check_name(kind, 'kind')}.{check_name(rid, 'rid')}"


def timer(pipeline: str, nonce: str, rid: str) -> str:
    """The request's deadline, as a scheduled message; `nonce` is its record's, so that no other request's is meant."""
    return f"{_root(pipeline)}.timer.{check_name(nonce, 'nonce')}.{check_name(rid, 'rid')}"


def batch(batch_id: str) -> str:
    """The subject of a batch in the queue of those that have not ended."""
    return f"omni-batches.{check_name(batch_id, 'batch_id')}"


def queued_video(video_id: str) -> str:
    """The subject of a video in the queue of those that have not ended."""
    return f"omni-videos.{check_name(video_id, 'video_id')}"


def queued_webhook(event_id: str) -> str:
    """The subject of an event in the queue of webhooks."""
    return f"omni-webhooks.{check_name(event_id, 'event_id')}"


def queued_response(response_id: str) -> str:
    """The subject of a response in the queue of those in the background that have not ended."""
    return f"omni-responses.{check_name(response_id, 'response_id')}"


def log(name: str) -> str:
    """The subject of a log of lines, in the store of files."""
    return f"$O.{stores.FILES_BUCKET}.C.{check_name(name, 'log')}"


def chunks(pipeline: str, rid: str, nonce: str, run: int, stage: int | str) -> str:
    """The flow of one stage in one run of a request; `nonce` is its record's, so that no other request's is meant.

    An open input is the flow of INPUT in run 0.
    """
    return f"{_flows(pipeline, rid, nonce, run)}.{stage}"


def read_position(flow: str, reader: int | str) -> str:
    """How far another stage has read a flow, by its subject; `*` for any stage."""
    return f"{flow}.{reader}"


def flows_filter(pipeline: str, rid: str, nonce: str, run: int) -> str:
    """All flows of one run of a request, and how far they were read."""
    return f"{_flows(pipeline, rid, nonce, run)}.>"


def chunk_subjects(pipeline: str) -> str:
    """The subjects of the stream of chunks."""
    return f"{_root(pipeline)}.chunk.>"


def deadline_event(pipeline: str, rid: str) -> str:
    """The subject of the event that the timer fires."""
    return event(pipeline, ANY_STAGE, EventKind.DEADLINE, rid)


# Core subjects


def out(pipeline: str, front: str, rid: str) -> str:
    """Deltas and the final notice, to the producer that listens with the reply token `front`."""
    return f"{_root(pipeline)}.out.{check_name(front, 'front')}.{check_name(rid, 'rid')}"


def out_all(pipeline: str, front: str) -> str:
    """Filter: every message for one reply token."""
    return f"{_root(pipeline)}.out.{check_name(front, 'front')}.*"


def is_out(subject: str, rid: str) -> bool:
    """Check that a subject is one where a follower of this request listens."""
    tokens = subject.split(".")
    return len(tokens) == _OUT_TOKENS and tokens[2] == "out" and is_name(tokens[3]) and tokens[4] == rid


def ctl(pipeline: str, stage: int, replica: str) -> str:
    """Control of one replica."""
    return f"{_root(pipeline)}.ctl.{stage}.{check_name(replica, 'replica')}"


def ctl_all(pipeline: str) -> str:
    """Control of all processes: cancellations."""
    return f"{_root(pipeline)}.ctl.all"


def ask(pipeline: str, stage: int, replica: str) -> str:
    """A question to one replica that changes nothing: whether it is there, which tokens a prompt has."""
    return f"{_root(pipeline)}.ask.{stage}.{check_name(replica, 'replica')}"


def ask_all(pipeline: str) -> str:
    """Questions to all replicas that change nothing: for claims and for texts."""
    return f"{_root(pipeline)}.ask.all"


def fetch(pipeline: str, host: str) -> str:
    """The subject on which processes of a host are asked for payloads in its memory."""
    return f"{_root(pipeline)}.fetch.{check_name(host, 'host')}"


def questions(pipeline: str, what: str) -> str:
    """Questions that one orchestrator answers, or does as it is asked; `what` may be a filter."""
    return f"{_root(pipeline)}.serve.{what}"


def claim(pipeline: str, stage: int, replica: str) -> str:
    """The subject on which a replica announces the deliveries that it holds."""
    return f"{_root(pipeline)}.claim.{stage}.{check_name(replica, 'replica')}"


def claims(pipeline: str) -> str:
    """Filter: all claims of a pipeline."""
    return f"{_root(pipeline)}.claim.*.*"


def service(pipeline: str, stage: int) -> str:
    """The name under which the replicas of a stage are services of NATS."""
    return f"omni-{check_name(pipeline, 'pipeline')}-{stage}"


def service_questions(name: str, instance: str) -> tuple[str, ...]:
    """Filters: PING, INFO and STATS to all services, to those of one name, and to one of them (NATS ADR-32)."""
    return ("$SRV.*", f"$SRV.*.{name}", f"$SRV.*.{name}.{check_name(instance, 'instance')}")


def disconnects(account: str) -> str:
    """The subject on which the server notifies the system account that a client of `account` is gone."""
    return f"$SYS.ACCOUNT.{account}.DISCONNECT"


# Filters


def purge_filter(pipeline: str, rid: str) -> str:
    """Everything queued for a request, tasks and events alike; not its timers."""
    return f"{_root(pipeline)}.*.*.*.{check_name(rid, 'rid')}"


def timers_filter(pipeline: str, rid: str) -> str:
    """The timers of all attempts to admit a request under this id."""
    return f"{_root(pipeline)}.timer.*.{check_name(rid, 'rid')}"


def requests_filter(pipeline: str) -> str:
    return f"{_root(pipeline)}.request.*"


def tasks_filter(pipeline: str, stage_id: int, lane: str) -> str:
    return f"{_root(pipeline)}.task.{stage_id}.{check_name(lane, 'lane')}.*"


def all_tasks_filter(pipeline: str) -> str:
    """Tasks of all stages and lanes."""
    return f"{_root(pipeline)}.task.*.*.*"


def events_filter(pipeline: str) -> str:
    return f"{_root(pipeline)}.event.*.*.*"


def work_subjects(pipeline: str) -> tuple[str, ...]:
    """The subjects of the work stream."""
    root = _root(pipeline)
    return (all_tasks_filter(pipeline), events_filter(pipeline), f"{root}.timer.*.*")


# Ids of messages


def message_id(kind: str, rid: str, stage: int | str, run: int) -> str:
    """Deduplication id. `run` is part of it: without, dedupe would swallow a legitimate re-run."""
    return f"{kind}.{rid}.{stage}.{run}"


def attempt_id(rid: str, task_seq: int, delivery: int) -> str:
    """Deduplication id of the event that an attempt failed, the same from every reporter."""
    return f"attempt.{rid}.{task_seq}.{delivery}"


# Parsing


def shared_lane_of(subject: str, lane: str) -> str:
    """The subject of the same task on another lane of its stage; raises InvalidRequest when it is no task's."""
    parts = parse_task(subject)
    return task(parts.pipeline, parts.stage_id, lane, parts.rid)


def parse_task(subject: str) -> TaskSubject:
    """Split a task's subject; raises InvalidRequest when it is none."""
    pipeline, stage, lane, rid = _split(subject, "task")
    if not stage.isdecimal():
        raise InvalidRequest(f"not a task's subject: {subject!r}")
    return TaskSubject(pipeline, int(stage), lane, rid)


def parse_event(subject: str) -> EventSubject:
    """Split an event's subject; raises InvalidRequest when it is none."""
    pipeline, stage, kind, rid = _split(subject, "event")
    if not (stage.isdecimal() or stage == ANY_STAGE):
        raise InvalidRequest(f"not an event's subject: {subject!r}")
    try:
        return EventSubject(pipeline, int(stage) if stage != ANY_STAGE else None, EventKind(kind), rid)
    except ValueError as error:
        raise InvalidRequest(f"unknown kind of event: {subject!r}") from error


def parse_rid(subject: str) -> str:
    """The request's id: the last token of every request, task, event, timer and out subject."""
    return subject.rpartition(".")[2]


def chunk_rid(subject: str) -> str:
    """The id of the request that a flow, or how far it was read, belongs to."""
    return subject.split(".")[_RID_OF_CHUNKS]


def _split(subject: str, family: str) -> tuple[str, str, str, str]:
    tokens = subject.split(".")
    if len(tokens) != _WORK_TOKENS or tokens[0] != "omni" or tokens[2] != family:
        raise InvalidRequest(f"not the subject of a {family}: {subject!r}")
    return tokens[1], tokens[3], tokens[4], tokens[5]


def _flows(pipeline: str, rid: str, nonce: str, run: int) -> str:
    return f"{_root(pipeline)}.chunk.{check_name(rid, 'rid')}.{check_name(nonce, 'nonce')}-{run}"


def _root(pipeline: str) -> str:
    return f"omni.{check_name(pipeline, 'pipeline')}"
