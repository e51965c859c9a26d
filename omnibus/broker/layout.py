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
from omnibus.requests.record import DEAD_TTL, ENDED_TTL
from omnibus.wire import stores, subjects

Config = Mapping[str, Any]

BATCH_LEASE = 10.0
"""Seconds of a runner's silence after which a batch goes to another."""
WEBHOOK_LEASE = 30.0
"""Seconds of a sender's silence after which a webhook goes to another."""
VIDEO_LEASE = 10.0
"""Seconds of a runner's silence after which a video goes to another."""
RESPONSE_LEASE = 4.0
"""Seconds of a runner's silence after which a response in the background goes to another: somebody may be reading it."""
_SECOND = 10**9
_DEDUPE_SECONDS = 600  # more than ack_wait × the attempts allowed + an outage
_DEDUPE_BUCKET_SECONDS = 120
_MAX_WAITING = 65_536  # cannot be changed later; far above slots × lanes of any stage
_PAYLOAD_MARGIN = 300.0  # seconds that a payload outlives any request and its answer
_IDLE_LEASES = (
    20  # after so many the server removes the consumer of a lane that no replica reads and nothing of is in hand
)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream; settings that are not named keep the server's default."""

    name: str
    config: Config

    def operation(self, verb: str) -> str:
        """A call of the JetStream API about it."""
        return f"STREAM.{verb}.{self.name}"


@dataclass(frozen=True, slots=True)
class Consumer:
    """A durable pull consumer."""

    stream: str
    name: str
    config: Config

    def operation(self, verb: str) -> str:
        """A call of the JetStream API about it."""
        return f"CONSUMER.{verb}.{self.stream}.{self.name}"


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


def layout_of(spec: PipelineSpec, *, replicas: int = 1) -> Layout:
    """The layout of a specification, with so many copies of everything. Pure.

    The heartbeat timeout is the ack wait of tasks and the lifetime of a replica's key; `max_open_requests` bounds raw
    requests that nobody admitted yet, and `max_stored_bytes` each stream that may refuse: raw requests, chunks of flows, and
    both object stores.
    """
    pipeline, lease = spec.name, spec.heartbeat_timeout
    configs = {**_own_streams(spec), **_shared_streams()}
    copies = {"storage": "file", "num_replicas": replicas}
    streams = (Stream(name, {"name": name, **copies, **config}) for name, config in configs.items())
    lanes = ((stage.stage_id, lane) for stage in spec.stages for lane in spec.stage_lanes)
    work, requests = stores.work_stream(pipeline), stores.requests_stream(pipeline)
    consumers = (
        _consumer(requests, stores.REQUESTS_CONSUMER, subjects.requests_filter(pipeline), lease),
        _consumer(work, stores.EVENTS_CONSUMER, subjects.events_filter(pipeline), lease),
        *(lane_consumer(pipeline, stage, lane, heartbeat_timeout=lease) for stage, lane in lanes),
        _consumer(stores.BATCHES_STREAM, stores.BATCHES_CONSUMER, subjects.BATCHES_FILTER, BATCH_LEASE),
        _consumer(stores.VIDEOS_STREAM, stores.VIDEOS_CONSUMER, subjects.VIDEOS_FILTER, VIDEO_LEASE),
        _consumer(stores.WEBHOOKS_STREAM, stores.WEBHOOKS_CONSUMER, subjects.WEBHOOKS_FILTER, WEBHOOK_LEASE),
        _consumer(stores.RESPONSES_STREAM, stores.RESPONSES_CONSUMER, subjects.RESPONSES_FILTER, RESPONSE_LEASE),
    )
    return Layout(tuple(streams), consumers)


def own_streams(spec: PipelineSpec) -> tuple[str, ...]:
    """The names of the streams that a pipeline shares with no other, and that end with it. Pure."""
    return tuple(_own_streams(spec))


def lane_consumer(pipeline: str, stage_id: int, lane: str, *, heartbeat_timeout: float = 10.0) -> Consumer:
    """The consumer of one lane that the replicas of a stage share. Pure."""
    return _consumer(
        stores.work_stream(pipeline),
        stores.stage_consumer(stage_id, lane),
        subjects.tasks_filter(pipeline, stage_id, lane),
        heartbeat_timeout,
    )


def own_lane_consumer(pipeline: str, stage_id: int, replica: str, *, heartbeat_timeout: float = 10.0) -> Consumer:
    """The consumer of a replica's own lane, for directed tasks; the server removes it some time after its last use. Pure."""
    shared = lane_consumer(pipeline, stage_id, replica, heartbeat_timeout=heartbeat_timeout)
    idle = {"inactive_threshold": _nanoseconds(_IDLE_LEASES * heartbeat_timeout)}
    return Consumer(shared.stream, shared.name, {**shared.config, **idle})


async def ensure_layout(connection: Connection, layout: Layout) -> list[Change]:
    """Bring the broker to the layout; returns what had to change. Idempotent, and safe when several do it at once."""
    changes = await plan(connection, layout)
    await apply(connection, changes)
    return changes


async def plan(connection: Connection, layout: Layout) -> list[Change]:
    """List what `apply` would do, in order. It looks before it creates: a second create would count twice against a quota."""
    changes = []
    targets: tuple[Stream | Consumer, ...] = (*layout.streams, *layout.consumers)
    for target in targets:
        found = await connection.find(target.operation("INFO"))
        if found is None:
            changes.append(Change("create", target))
        elif differences := compare(target.config, found["config"]):
            changes.append(Change("update", target, differences))
    return changes


async def apply(connection: Connection, changes: Sequence[Change]) -> None:
    """Perform changes in order; raises BrokerRefused for a setting that cannot be changed in place, and names it."""
    for change in changes:
        target = change.target
        if isinstance(target, Stream):
            await connection.api(target.operation(change.action.upper()), target.config)
        else:
            body = {"stream_name": target.stream, "config": target.config, "action": ""}
            await connection.api(target.operation("CREATE"), body)
        log.debug(LogEvent.BROKER_LAYOUT_CHANGED, change=str(change))
    if changes:
        log.info(LogEvent.BROKER_LAYOUT_CHANGED, changes=len(changes))


def compare(wanted: Config, found: Config) -> tuple[str, ...]:
    """Settings of `wanted` that differ in `found`, where the server leaves out zeros; others do not matter. Pure."""
    return tuple(
        f"{key}: {found.get(key)!r} → {value!r}"
        for key, value in wanted.items()
        if found.get(key, type(value)()) != value
    )


def _queues(spec: PipelineSpec) -> dict[str, Config]:
    # Invariant: that of work is unbounded. A full queue of tasks would refuse what workers publish before they may
    # acknowledge, and nothing would ever drain it.
    queue = {"retention": "workqueue", "duplicate_window": _DEDUPE_SECONDS * _SECOND}
    return {
        stores.requests_stream(spec.name): {
            **queue,
            "subjects": [subjects.requests_filter(spec.name)],
            "max_msgs": spec.max_open_requests,
            "max_bytes": spec.max_stored_bytes or -1,
            "discard": "new",  # the only stream that refuses
        },
        stores.work_stream(spec.name): {
            **queue,
            "subjects": list(subjects.work_subjects(spec.name)),
            "max_msgs": -1,
            "max_bytes": -1,
            "discard": "old",  # scheduled messages need it
            "allow_msg_schedules": True,
            "allow_msg_ttl": True,
            "allow_direct": True,
        },
    }


def _chunks(spec: PipelineSpec) -> dict[str, Config]:
    """The stream of flows, where a request can have one; its age limit is a backstop for what nobody removed."""
    if not spec.has_flows:
        return {}
    return {
        stores.chunks_stream(spec.name): {
            "subjects": [subjects.chunk_subjects(spec.name)],
            "max_age": _nanoseconds(spec.deadline + _PAYLOAD_MARGIN),
            "max_bytes": spec.max_stored_bytes or -1,
            "discard": "new",
            "allow_rollup_hdrs": False,  # one message of any worker could remove all
            "allow_direct": True,
        }
    }


def _own_streams(spec: PipelineSpec) -> dict[str, Config]:
    """The streams of one pipeline alone. The age limits of object stores are a backstop for payloads that nobody removed."""
    lease = _nanoseconds(spec.heartbeat_timeout)
    expiring = {  # so that watches hear of replicas whose keys expire
        "max_age": lease,
        "duplicate_window": min(_nanoseconds(_DEDUPE_BUCKET_SECONDS), lease),
        "subject_delete_marker_ttl": max(lease, _SECOND),
    }
    answers, dead = (_nanoseconds(age + _PAYLOAD_MARGIN) for age in (spec.deadline + ENDED_TTL, DEAD_TTL))
    most = spec.max_stored_bytes or -1
    return {
        **_queues(spec),
        **_chunks(spec),
        **_bucket(stores.replicas_bucket(spec.name), **expiring),
        **_bucket(stores.requests_bucket(spec.name)),
        **_object_store(stores.payloads_bucket(spec.name), max_age=answers, max_bytes=most),
        **_object_store(stores.dead_payloads_bucket(spec.name), max_age=dead, max_bytes=most),
    }


def _shared_streams() -> dict[str, Config]:
    """The streams that all pipelines and tenants share: deployed pipelines, files, batches, videos, responses."""
    queues = {
        stores.BATCHES_STREAM: subjects.BATCHES_FILTER,
        stores.VIDEOS_STREAM: subjects.VIDEOS_FILTER,
        stores.RESPONSES_STREAM: subjects.RESPONSES_FILTER,
    }
    queue = {"retention": "workqueue", "duplicate_window": _nanoseconds(_DEDUPE_SECONDS)}
    return {
        **_bucket(stores.PIPELINES_BUCKET),
        **_bucket(stores.FILES_BUCKET),
        **_bucket(stores.BATCHES_BUCKET),
        **_bucket(stores.VIDEOS_BUCKET),
        **_bucket(stores.WEBHOOKS_BUCKET),
        **_bucket(stores.RESPONSES_BUCKET),
        **_object_store(stores.FILES_BUCKET, max_age=0, allow_msg_ttl=True),
        **{name: {**queue, "subjects": [filter_subject]} for name, filter_subject in queues.items()},
        stores.WEBHOOKS_STREAM: {**queue, "subjects": [subjects.WEBHOOKS_FILTER]},
    }


def _bucket(name: str, **config: Any) -> dict[str, Config]:
    """A key-value bucket with history 1 and a lifetime a key."""
    usual = {
        "subjects": [f"$KV.{name}.>"],
        "max_msgs_per_subject": 1,
        "max_age": 0,
        "discard": "new",
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "duplicate_window": _nanoseconds(_DEDUPE_BUCKET_SECONDS),
    }
    return {f"KV_{name}": {**usual, **config}}


def _object_store(name: str, **config: Any) -> dict[str, Config]:
    usual = {
        "subjects": [f"$O.{name}.C.>", f"$O.{name}.M.>"],
        "discard": "new",
        "allow_rollup_hdrs": True,
        "allow_direct": True,
    }
    return {f"OBJ_{name}": {**usual, **config}}


def _consumer(stream: str, name: str, filter_subject: str, lease: float) -> Consumer:
    config = {
        "durable_name": name,
        "filter_subject": filter_subject,
        "ack_policy": "explicit",
        "ack_wait": _nanoseconds(lease),
        "max_ack_pending": -1,  # the default of 1,000 would cap a fleet
        "max_deliver": -1,  # the receiver counts attempts: at a limit here the message would stay, unread
        "max_waiting": _MAX_WAITING,
    }
    return Consumer(stream, name, config)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * _SECOND)
