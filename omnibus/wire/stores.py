"""Names of what keeps messages and records on the broker: streams, consumers, buckets and their keys; built nowhere else."""

from __future__ import annotations

from omnibus.wire.names import check_name

PIPELINES_BUCKET = "omni-pipelines"
"""KV bucket of all deployed pipelines, by name."""
FILES_BUCKET = "omni-files"
"""Files of all tenants: a bucket of records, and an object store."""
BATCHES_BUCKET, VIDEOS_BUCKET, RESPONSES_BUCKET = "omni-batches", "omni-videos", "omni-responses"
"""KV buckets of the jobs of all tenants."""
WEBHOOKS_BUCKET = "omni-webhooks"
"""KV bucket of the endpoints of webhooks."""
BATCHES_STREAM, VIDEOS_STREAM, RESPONSES_STREAM = "OMNI_BATCHES", "OMNI_VIDEOS", "OMNI_RESPONSES"
"""Work queues of the jobs that have not ended; of responses, of those in the background."""
WEBHOOKS_STREAM = "OMNI_WEBHOOKS"
"""Work queue of the webhooks that nobody has taken yet."""
BATCHES_CONSUMER = VIDEOS_CONSUMER = RESPONSES_CONSUMER = "runners"
WEBHOOKS_CONSUMER = "senders"
"""Durable consumers of those queues, which the front doors share."""
EVENTS_CONSUMER = "events"
"""Durable consumer that the orchestrators of a pipeline share."""
REQUESTS_CONSUMER = "requests"
"""Durable consumer of raw requests."""
DEAD_LETTERS = "dead."
"""Prefix of the keys of dead letters in the ledger."""


def requests_stream(pipeline: str) -> str:
    return f"OMNI_{check_name(pipeline, 'pipeline')}_REQUESTS"


def work_stream(pipeline: str) -> str:
    return f"OMNI_{check_name(pipeline, 'pipeline')}_WORK"


def chunks_stream(pipeline: str) -> str:
    return f"OMNI_{check_name(pipeline, 'pipeline')}_CHUNKS"


def stage_consumer(stage_id: int, lane: str) -> str:
    """Durable consumer that the replicas of a stage share for one lane."""
    return f"stage-{stage_id}-{check_name(lane, 'lane')}"


def parse_stage_consumer(name: str) -> tuple[int, str] | None:
    """The stage and the lane of a consumer; None for one of another kind."""
    kind, _, rest = name.partition("-")
    stage, _, lane = rest.partition("-")
    return (int(stage), lane) if kind == "stage" and stage.isdecimal() and lane else None


def replicas_bucket(pipeline: str) -> str:
    return f"omni-{check_name(pipeline, 'pipeline')}-replicas"


def requests_bucket(pipeline: str) -> str:
    return f"omni-{check_name(pipeline, 'pipeline')}-requests"


def payloads_bucket(pipeline: str) -> str:
    return f"omni-{check_name(pipeline, 'pipeline')}-payloads"


def dead_payloads_bucket(pipeline: str) -> str:
    return f"omni-{check_name(pipeline, 'pipeline')}-dead"


def replica_key(stage_id: int, replica: str) -> str:
    """Key of a replica in the coordinator."""
    return f"{stage_id}.{check_name(replica, 'replica')}"


def pause_key(pipeline: str, stage_id: int) -> str:
    """Key of a stage's pause state in the bucket of pipelines, beside the pipelines, whose names have no dots."""
    return f"{check_name(pipeline, 'pipeline')}.pause.{stage_id}"


def drain_key(pipeline: str, stage_id: int, place: str) -> str:
    """Key of a replica's drain, beside the pause states; without a place, what those of a stage begin with."""
    return f"{check_name(pipeline, 'pipeline')}.drain.{stage_id}.{place}"


def dead_letter_key(rid: str) -> str:
    """Key of a dead letter in the ledger."""
    return f"{DEAD_LETTERS}{check_name(rid, 'rid')}"
