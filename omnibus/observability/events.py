"""The closed vocabulary of log events: `log.info(LogEvent.TASK_FINISHED, rid=…, stage=…)`.

One thing that happens has one name, so that logs can be counted and alerted on. A name is `<subject>.<what happened>`.
Fields carry the rest; prompts and payloads are never among them at INFO.
"""

from __future__ import annotations

from enum import StrEnum


class LogEvent(StrEnum):
    """The names of log events."""

    # Requests
    REQUEST_ACCEPTED = "request.accepted"
    REQUEST_REFUSED = "request.refused"
    """The request was not admitted: a bound is reached, or it cannot be served as it is."""
    REQUEST_ATTACHED = "request.attached"
    """The same request was open already; its answer is shared."""
    REQUEST_REDRIVEN = "request.redriven"
    """The request runs again from its input, as a new run."""
    REQUEST_DONE = "request.done"
    REQUEST_FAILED = "request.failed"
    REQUEST_CANCELLED = "request.cancelled"
    REQUEST_EXPIRED = "request.expired"
    REQUEST_DEAD = "request.dead"
    """The request was written to the dead letters."""
    DEAD_LETTER_UNREADABLE = "dead_letter.unreadable"

    # Tasks and leases, as a worker sees them
    TASK_RECEIVED = "task.received"
    TASK_REDELIVERED = "task.redelivered"
    """The task was received again: an earlier attempt was lost."""
    TASK_FINISHED = "task.finished"
    TASK_FAILED = "task.failed"
    TASK_MALFORMED = "task.malformed"
    STAGE_RAISED = "stage.raised"
    """A stage's own code raised an exception; the traceback stands below."""
    TASK_DROPPED = "task.dropped"
    """The request of the task has ended."""
    TASK_REQUEUED = "task.requeued"
    TASK_EXHAUSTED = "task.exhausted"
    """The task was delivered beyond the limit, and not run."""
    TASK_REROUTED = "task.rerouted"
    """The task was moved from the lane of a dead replica to the shared lane."""
    LEASE_LOST = "lease.lost"
    """The lease was missed: the worker publishes nothing more about this task."""
    ACK_FAILED = "ack.failed"
    MEMORY_UNAVAILABLE = "memory.unavailable"
    """Shared memory cannot be used: large outputs go through the object store."""
    WRITE_THROUGH_FAILED = "payload.write_through_failed"
    """An output of a durable edge is in its host's memory only."""
    PAYLOADS_LEFT = "payloads.left"
    """Payloads were stored after the request's end and not removed; the store's lifetime ends them."""

    # Batches
    BATCH_ENDED = "batch.ended"
    VIDEO_GIVEN_UP = "video.given_up"
    """Nobody can make it; it has failed, unless it could not even be read."""
    RESPONSE_GIVEN_UP = "response.given_up"
    """Nobody can make it; it has failed, unless it could not even be read."""

    # Files
    FILES_REMOVED = "files.removed"
    """Bytes of expired files have left the operator's storage."""
    FILES_NOT_REMOVED = "files.not_removed"

    # Webhooks
    WEBHOOK_REFUSED = "webhook.refused"
    """An endpoint did not take it; it is sent again."""
    WEBHOOK_GIVEN_UP = "webhook.given_up"
    """Nobody has taken it for days, or it cannot be read."""

    # Flows
    FLOW_SKIPPED = "flow.skipped"
    """A caller has a sound from its output alone: its flow could not be written, or read, while it was made."""

    # Events, as an orchestrator sees them
    EVENT_FAILED = "event.failed"
    """Handling the event raised; the event is delivered again."""
    EVENT_POISONOUS = "event.poisonous"
    """Handling the event keeps failing; its request ends as failed."""

    # Replicas
    REPLICA_STARTED = "replica.started"
    """The replica's process runs; the engine is loading."""
    REPLICA_UP = "replica.up"
    REPLICA_STATS = "replica.stats"
    """The replica's load, where `--log-stats` is on."""
    REPLICA_PAUSED = "replica.paused"
    """Its whole stage is paused or asleep by an operator's order, and so is it."""
    REPLICA_DRAINING = "replica.draining"
    REPLICA_DOWN = "replica.down"
    REPLICA_RESTARTING = "replica.restarting"
    STAGE_SCALED = "stage.scaled"
    """The number of replicas that a stage should have has changed."""
    REPLICA_FENCED = "replica.fenced"
    """The replica was marked down while it lived, and registers afresh."""
    REPLICA_EXPIRED = "replica.expired"
    """No heartbeat within the timeout."""
    REPLICA_HUNG = "replica.hung"
    """Its process lives and has been silent for long; it is killed, to be started again."""
    CLAIMS_RELEASED = "claims.released"
    """The tasks of a dead replica were requeued."""
    DISCONNECTS_UNAVAILABLE = "disconnects.unavailable"
    """No disconnect events from the server: of a death that no supervisor reports, only the heartbeat timeout tells."""
    ENGINE_DEAD = "engine.dead"
    """It cannot serve any more, or is stuck; its replica ends, to be started again."""
    ENGINE_CLOSE_FAILED = "engine.close_failed"
    """Freeing what it held raised; its replica ends as it would have."""
    ENGINE_ADAPTER_FAILED = "engine.adapter_failed"
    """An adapter of a stage's arguments cannot be loaded; requests with it are refused."""
    ENGINE_UNTRIED = "engine.untried"
    """The engine's library has a version that the tests did not pass on; it is served all the same."""
    CHECKPOINT_CONVERTING = "checkpoint.converting"
    """A checkpoint that is one file is made a folder in the cache, once."""
    CHECKPOINT_CONVERTED = "checkpoint.converted"
    CHECKPOINT_AWAITED = "checkpoint.awaited"
    """Another process makes the same folder."""
    CANARY_REFUSED = "canary.refused"
    """The engine refuses the request that its stage declares as a canary."""

    # The broker
    BROKER_AWAITED = "broker.awaited"
    """A process has started before its broker."""
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
    PIPELINE_AWAITED = "pipeline.awaited"
    """A process has started before its pipeline was deployed."""
    PIPELINE_DEPLOYED = "pipeline.deployed"
    PIPELINE_DELETED = "pipeline.deleted"
    PIPELINE_UNREADABLE = "pipeline.unreadable"
    """Another version has deployed a specification that this one cannot read."""
    SERVER_STARTED = "server.started"
    SERVER_STOPPED = "server.stopped"
    HTTP_REQUEST = "http.request"
    API_KEYS_UNREADABLE = "http.api_keys_unreadable"
    """The file of keys has become unreadable; those that were known stay."""
    TASK_CRASHED = "process.task_crashed"
    """A background task of a process ended with an unexpected exception."""
