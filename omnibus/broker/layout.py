"""The layout of a pipeline on the broker, described once; `plan` compares, `apply` creates and updates.

Buckets and object stores are streams too, and are described as such. Durations are nanoseconds, as in the server's API.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from omnibus.broker.connection import Connection
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.record import DEAD_TTL, DONE_TTL
from omnibus.wire import subjects

Config = Mapping[str, Any]

_SECOND = 10**9
_DAY = 86_400 * _SECOND
_DEDUPE_SECONDS = 600  # more than ack_wait × the attempts allowed + an outage
_DEDUPE_BUCKET_SECONDS = 120
_MAX_WAITING = 65_536  # cannot be changed later; far above slots × lanes of any stage
_PAYLOAD_MARGIN = 300.0  # seconds that a payload outlives any request and its answer
_CHUNKS_DAYS = 1  # a backstop: they are purged when their request ends
_IDLE_LEASES = (
    20  # after so many the server removes the consumer of a lane that no replica reads and nothing of is in hand
)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream; settings that are not named keep the server's default."""

    name: str
    config: Config


@dataclass(frozen=True, slots=True)
class Consumer:
    """A durable pull consumer."""

    stream: str
    name: str
    config: Config


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that a pipeline needs on the broker."""

    streams: tuple[Stream, ...]
    consumers: tuple[Consumer, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A difference between a layout and the broker; nothing is ever deleted."""

    action: Literal["create", "update"]
    target: Stream | Consumer
    differences: tuple[str, ...] = ()
    """`setting: is → should be`, for updates."""

    def __str__(self) -> str:
        kind = "stream" if isinstance(self.target, Stream) else f"consumer of {self.target.stream}"
        details = f" ({'; '.join(self.differences)})" if self.differences else ""
        return f"{self.action} {kind} {self.target.name}{details}"


def describe(
    pipeline: str,
    lanes_by_stage: Mapping[int, Sequence[str]],
    *,
    heartbeat_timeout: float = 10.0,
    max_waiting_requests: int = 10_000,
    payload_ttl: float = 86_400.0,
    max_stored_bytes: int | None = None,
    replicas: int = 1,
) -> Layout:
    """The layout of a pipeline. Pure.

    `heartbeat_timeout` (seconds) is the ack wait of tasks and the lifetime of a replica's key;
    `max_waiting_requests` bounds raw requests that nobody admitted yet; `payload_ttl` (seconds) is the backstop that
    removes stored payloads; `max_stored_bytes` bounds each stream that may refuse or drop: raw requests, chunks, and both object
    stores; `replicas` is the number of copies of everything.
    """
    ack_wait = _nanoseconds(heartbeat_timeout)
    work, requests = subjects.work_stream(pipeline), subjects.requests_stream(pipeline)
    dead = subjects.dead_payloads_bucket(pipeline)
    most = {"max_bytes": max_stored_bytes or -1}
    streams = (
        _stream(requests, replicas, {**_requests_config(pipeline, max_waiting_requests), **most}),
        _stream(work, replicas, _work_config(pipeline)),
        _stream(subjects.chunks_stream(pipeline), replicas, {**_chunks_config(pipeline), **most}),
        _bucket(subjects.replicas_bucket(pipeline), replicas, ttl=ack_wait, markers=True),
        _bucket(subjects.requests_bucket(pipeline), replicas),
        _bucket(subjects.PIPELINES_BUCKET, replicas),
        _object_store(subjects.payloads_bucket(pipeline), replicas, ttl=_nanoseconds(payload_ttl), **most),
        _object_store(dead, replicas, ttl=_nanoseconds(DEAD_TTL + _PAYLOAD_MARGIN), **most),
    )
    tasks = (
        lane_consumer(pipeline, stage, lane, heartbeat_timeout=heartbeat_timeout)
        for stage, lanes in lanes_by_stage.items()
        for lane in lanes
    )
    consumers = (
        _consumer(requests, subjects.REQUESTS_CONSUMER, subjects.requests_filter(pipeline), ack_wait),
        _consumer(work, subjects.EVENTS_CONSUMER, subjects.events_filter(pipeline), ack_wait),
        *tasks,
    )
    return Layout(streams, consumers)


def layout_of(spec: PipelineSpec, *, replicas: int = 1) -> Layout:
    """The layout of a specification: every stage has all lanes of its pipeline. Pure."""
    return describe(
        spec.name,
        {stage.stage_id: spec.stage_lanes for stage in spec.stages},
        heartbeat_timeout=spec.heartbeat_timeout,
        max_waiting_requests=spec.max_open_requests,
        payload_ttl=spec.deadline + DONE_TTL + _PAYLOAD_MARGIN,
        max_stored_bytes=spec.max_stored_bytes,
        replicas=replicas,
    )


def lane_consumer(pipeline: str, stage_id: int, lane: str, *, heartbeat_timeout: float = 10.0) -> Consumer:
    """The consumer of one lane that the replicas of a stage share. Pure."""
    return _consumer(
        subjects.work_stream(pipeline),
        subjects.stage_consumer(stage_id, lane),
        subjects.tasks_filter(pipeline, stage_id, lane),
        _nanoseconds(heartbeat_timeout),
    )


def own_lane_consumer(pipeline: str, stage_id: int, replica: str, *, heartbeat_timeout: float = 10.0) -> Consumer:
    """The consumer of a replica's own lane, for directed tasks; the server removes it some time after its last use. Pure."""
    shared = lane_consumer(pipeline, stage_id, replica, heartbeat_timeout=heartbeat_timeout)
    idle = {"inactive_threshold": _IDLE_LEASES * _nanoseconds(heartbeat_timeout)}
    return Consumer(shared.stream, shared.name, {**shared.config, **idle})


async def ensure_layout(connection: Connection, layout: Layout) -> list[Change]:
    """Bring the broker to the layout; returns what had to change. Idempotent, and safe when several do it at once."""
    changes = await plan(connection, layout)
    await apply(connection, changes)
    return changes


async def plan(connection: Connection, layout: Layout) -> list[Change]:
    """List what `apply` would do, in order. It looks before it creates: a second create would count twice against a quota."""
    targets: tuple[Stream | Consumer, ...] = (*layout.streams, *layout.consumers)
    changes = []
    for target in targets:
        change = await _compare(connection, target)
        if change is not None:
            changes.append(change)
    return changes


async def apply(connection: Connection, changes: Sequence[Change]) -> None:
    """Perform changes in order; raises BrokerRefused for a setting that cannot be changed in place, and names it."""
    for change in changes:
        target = change.target
        if isinstance(target, Stream):
            await connection.api(f"STREAM.{change.action.upper()}.{target.name}", target.config)
        else:
            body = {"stream_name": target.stream, "config": target.config, "action": ""}
            await connection.api(f"CONSUMER.CREATE.{target.stream}.{target.name}", body)
        log.debug(LogEvent.BROKER_LAYOUT_CHANGED, change=str(change))
    if changes:
        log.info(LogEvent.BROKER_LAYOUT_CHANGED, changes=len(changes))


async def _compare(connection: Connection, target: Stream | Consumer) -> Change | None:
    if isinstance(target, Stream):
        found = await connection.find(f"STREAM.INFO.{target.name}")
    else:
        found = await connection.find(f"CONSUMER.INFO.{target.stream}.{target.name}")
    if found is None:
        return Change("create", target)
    differences = compare(target.config, found["config"])
    return Change("update", target, differences) if differences else None


def compare(wanted: Config, found: Config) -> tuple[str, ...]:
    """Settings of `wanted` that differ in `found`; settings that are not wanted do not matter. Pure."""
    return tuple(
        f"{key}: {found.get(key)!r} → {value!r}"
        for key, value in wanted.items()
        if found.get(key, _absent(value)) != value
    )


def _absent(wanted: object) -> object:
    """Return the value of a setting that the server leaves out: it omits zeros."""
    return type(wanted)()


def _stream(name: str, replicas: int, config: Config) -> Stream:
    return Stream(name, {"name": name, "storage": "file", "num_replicas": replicas, **config})


def _requests_config(pipeline: str, bound: int) -> Config:
    return {
        "subjects": [subjects.requests_filter(pipeline)],
        "retention": "workqueue",
        "max_msgs": bound,
        "discard": "new",  # the only stream that refuses
        "duplicate_window": _DEDUPE_SECONDS * _SECOND,
    }


def _work_config(pipeline: str) -> Config:
    # Invariant: unbounded. A full queue of tasks would refuse what workers publish before they may acknowledge, and
    # nothing would ever drain it.
    return {
        "subjects": list(subjects.work_subjects(pipeline)),
        "retention": "workqueue",
        "max_msgs": -1,
        "max_bytes": -1,
        "discard": "old",  # scheduled messages need it
        "allow_msg_schedules": True,
        "allow_msg_ttl": True,
        "allow_direct": True,
        "duplicate_window": _DEDUPE_SECONDS * _SECOND,
    }


def _chunks_config(pipeline: str) -> Config:
    return {
        "subjects": [subjects.chunks_filter(pipeline)],
        "retention": "limits",
        "discard": "old",
        "max_age": _CHUNKS_DAYS * _DAY,
        "allow_direct": True,
    }


def _bucket(bucket: str, replicas: int, *, ttl: int = 0, markers: bool = False) -> Stream:
    """A key-value bucket with history 1 and a lifetime a key; with `markers`, a watch hears of expiry."""
    dedupe = _DEDUPE_BUCKET_SECONDS * _SECOND
    config: dict[str, Any] = {
        "subjects": [f"$KV.{bucket}.>"],
        "max_msgs_per_subject": 1,
        "max_age": ttl,
        "discard": "new",
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "duplicate_window": min(dedupe, ttl) if ttl else dedupe,
    }
    if markers:
        config["subject_delete_marker_ttl"] = max(ttl, _SECOND)
    return _stream(f"KV_{bucket}", replicas, config)


def _object_store(bucket: str, replicas: int, *, ttl: int, max_bytes: int) -> Stream:
    config = {
        "subjects": [f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"],
        "max_age": ttl,
        "max_bytes": max_bytes,
        "discard": "new",
        "allow_rollup_hdrs": True,
        "allow_direct": True,
    }
    return _stream(f"OBJ_{bucket}", replicas, config)


def _consumer(stream: str, name: str, filter_subject: str, ack_wait: int) -> Consumer:
    config = {
        "durable_name": name,
        "filter_subject": filter_subject,
        "ack_policy": "explicit",
        "ack_wait": ack_wait,
        "max_ack_pending": -1,  # the default of 1,000 would cap a fleet
        "max_deliver": -1,  # the receiver counts attempts: at a limit here the message would stay, unread
        "max_waiting": _MAX_WAITING,
    }
    return Consumer(stream, name, config)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * _SECOND)
