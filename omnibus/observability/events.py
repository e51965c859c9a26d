"""The closed vocabulary of log events: `log.info(LogEvent.TASK_FINISHED, rid=…, stage=…)`.

One thing that happens has one name, so that logs can be counted and alerted on. A name is `<subject>.<what happened>`.
Fields carry the rest; prompts and payloads are never among them at INFO.
"""

from __future__ import annotations

from enum import StrEnum


class LogEvent(StrEnum):
    """What a log line can say."""

    # Requests
    REQUEST_ACCEPTED = "request.accepted"
    REQUEST_REFUSED = "request.refused"
    """Not admitted: a bound is reached, or it cannot be served as it is."""
    REQUEST_ATTACHED = "request.attached"
    """The same request was there already; its answer is shared."""
    REQUEST_REDRIVEN = "request.redriven"
    """Runs again from its input, as a new run."""
    REQUEST_DONE = "request.done"
    REQUEST_FAILED = "request.failed"
    REQUEST_CANCELLED = "request.cancelled"
    REQUEST_EXPIRED = "request.expired"
    REQUEST_DEAD = "request.dead"
    """Written to the dead letters."""

    # Tasks and leases, as a worker sees them
    TASK_RECEIVED = "task.received"
    TASK_REDELIVERED = "task.redelivered"
    """Received again: an earlier attempt was lost."""
    TASK_FINISHED = "task.finished"
    TASK_FAILED = "task.failed"
    TASK_DROPPED = "task.dropped"
    """Of a request that has ended."""
    TASK_REQUEUED = "task.requeued"
    TASK_EXHAUSTED = "task.exhausted"
    """Delivered beyond the limit, and not run."""
    TASK_REROUTED = "task.rerouted"
    """Moved from the lane of a dead replica to the shared lane."""
    LEASE_LOST = "lease.lost"
    """The lease was missed: the worker says nothing more about this task."""
    ACK_FAILED = "ack.failed"
    PAYLOADS_LEFT = "payloads.left"
    """Stored after the request's end and not removed: they go with their store's lifetime."""

    # Events, as an orchestrator sees them
    EVENT_FAILED = "event.failed"
    """Handling raised; it is delivered again."""
    EVENT_POISONOUS = "event.poisonous"
    """Handling keeps failing; its request ends as failed."""

    # Replicas
    REPLICA_STARTED = "replica.started"
    """Its process runs; the engine is loading."""
    REPLICA_UP = "replica.up"
    REPLICA_STATS = "replica.stats"
    """Its load, where `--log-stats` is on."""
    REPLICA_PAUSED = "replica.paused"
    """Its whole stage is paused or asleep by an operator's order, and so is it."""
    REPLICA_DRAINING = "replica.draining"
    REPLICA_DOWN = "replica.down"
    REPLICA_RESTARTING = "replica.restarting"
    REPLICA_FENCED = "replica.fenced"
    """It found itself declared down, and registers afresh."""
    REPLICA_EXPIRED = "replica.expired"
    """No heartbeat within the timeout."""
    REPLICA_HUNG = "replica.hung"
    """Its process lives and has been silent for long; it is killed, to be started again."""
    CLAIMS_RELEASED = "claims.released"
    """The tasks of a dead replica were given back to the queue."""
    DISCONNECTS_UNHEARD = "disconnects.unheard"
    """No disconnect events from the server: of a death that no supervisor reports, only the heartbeat timeout tells."""
    ENGINE_DEAD = "engine.dead"

    # The broker
    BROKER_CONNECTED = "broker.connected"
    BROKER_DISCONNECTED = "broker.disconnected"
    BROKER_RECONNECTED = "broker.reconnected"
    BROKER_CLOSED = "broker.closed"
    BROKER_ERROR = "broker.error"
    BROKER_PERMISSION_DENIED = "broker.permission_denied"
    BROKER_LAYOUT_CHANGED = "broker.layout_changed"
    BROKER_SERVER_STARTED = "broker.server_started"
    """The embedded nats-server."""
    BROKER_SERVER_EXITED = "broker.server_exited"
    PULL_REISSUED = "pull.reissued"
    WATCH_RESYNCED = "watch.resynced"

    # Processes
    PIPELINE_DEPLOYED = "pipeline.deployed"
    PIPELINE_DELETED = "pipeline.deleted"
    PIPELINE_UNREADABLE = "pipeline.unreadable"
    """Deployed by a version that writes what this one cannot read."""
    SERVER_STARTED = "server.started"
    SERVER_STOPPED = "server.stopped"
    HTTP_REQUEST = "http.request"
    TASK_CRASHED = "process.task_crashed"
    """A background task of a process ended with an exception that nobody expected."""
