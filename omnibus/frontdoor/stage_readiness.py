"""Readiness of a model: which of its stages have no replica up, and since when those load."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import msgspec

from omnibus.errors import OmnibusError
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus

UNKNOWN_WAIT, MIN_WAIT, MAX_WAIT = 5.0, 1.0, 30.0
"""Seconds after which to ask again: where nothing loads, at least, and at most."""


class MissingStage(msgspec.Struct, frozen=True):
    """A stage without a replica that takes tasks."""

    stage: str
    loading_seconds: float | None
    """How long its oldest starting replica has been loading; None where none starts."""

    def __str__(self) -> str:
        state = "none starts" if self.loading_seconds is None else f"loading for {self.loading_seconds:.0f} s"
        return f"{self.stage} ({state})"


class NotReady(OmnibusError, code="model_not_ready", http_status=503, retryable=True):
    """A stage that the request needs has no replica up, and the request does not want to wait."""

    def __init__(self, model: str, missing: Sequence[MissingStage]) -> None:
        super().__init__(f"model {model!r} has no replica up of: {', '.join(map(str, missing))}", param="wait")
        known = [one.loading_seconds for one in missing if one.loading_seconds is not None]
        # What has loaded for long will not be there in a second: wait half as long again, within bounds.
        self.retry_after = min(MAX_WAIT, max(MIN_WAIT, max(known) / 2)) if known else UNKNOWN_WAIT


def missing_stages(
    spec: PipelineSpec, records: Iterable[ReplicaRecord], needed: Iterable[int] | None = None, now: float | None = None
) -> list[MissingStage]:
    """The stages among `needed` (by default all) that have no replica up. `now` is in seconds since the epoch."""
    wanted = set(needed) if needed is not None else {stage.stage_id for stage in spec.stages}
    now = time.time() if now is None else now
    known = list(records)
    up = {record.stage_id for record in known if record.status is ReplicaStatus.UP}
    missing = []
    for stage in spec.stages:
        if stage.stage_id in wanted - up:
            starting = [
                record.registered_at
                for record in known
                if record.stage_id == stage.stage_id and record.status is ReplicaStatus.STARTING
            ]
            # The replica's clock may be ahead of ours.
            loading = round(max(0.0, now - min(starting)), 1) if starting else None
            missing.append(MissingStage(stage.name, loading))
    return missing
