"""The activity of a pipeline: the lanes of its queues, and the load of its stages. Pure functions of its status."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from omnibus.client.cluster_view import PipelineStatus
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from omnibus.wire import stores


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneActivity:
    """One consumer of the queue of work: a lane of a stage, or the events for orchestrators."""

    consumer: str
    stage_id: int | None
    """None of the events."""
    stage: str | None
    lane: str
    waiting: int
    in_flight: int
    """Delivered, and not acknowledged yet."""
    redelivered: int
    """Messages in flight that somebody had before."""
    oldest_seconds: float | None
    """Age of the message that waits longest; None where none waits, or the credentials may not read it."""
    pulls: int
    """Requests for messages that wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageActivity:
    """One stage with all its lanes and replicas."""

    stage_id: int
    stage: str
    waiting: int
    in_flight: int
    oldest_seconds: float | None
    taken_rate: float | None
    """Tasks that replicas took, a second, since the status before; None for the first one."""
    busy: int
    slots: int
    """Slots of replicas that take tasks."""
    up: int
    replicas: int
    """Those alive, whatever they do."""


def lanes_of(status: PipelineStatus) -> list[LaneActivity]:
    """The lanes of every stage in their order, replicas' own lanes behind them, and at last the events."""
    names = {stage.stage_id: stage.name for stage in status.spec.stages}
    order = {lane: number for number, lane in enumerate(status.spec.stage_lanes)}
    found = []
    for consumer, depth in status.depths.items():
        stage_id, lane = stores.parse_stage_consumer(consumer) or (None, consumer)
        found.append(
            LaneActivity(
                consumer=consumer, stage_id=stage_id, stage=None if stage_id is None else names.get(stage_id), lane=lane,
                waiting=depth.waiting, in_flight=depth.running, redelivered=depth.redelivered,
                oldest_seconds=_age(status, depth.since), pulls=depth.pulls,
            )
        )  # fmt: skip
    return sorted(found, key=lambda one: (one.stage_id is None, one.stage_id or 0, order.get(one.lane, 99), one.lane))


def stages_of(status: PipelineStatus, before: PipelineStatus | None = None) -> list[StageActivity]:
    """The load of each stage; rates are between the status before and this one."""
    lanes = lanes_of(status)
    found = []
    for stage in status.spec.stages:
        own = [lane for lane in lanes if lane.stage_id == stage.stage_id]
        alive = [one for one in status.replicas if one.stage_id == stage.stage_id and one.alive]
        working = [one for one in alive if one.status is ReplicaStatus.UP]
        ages = [lane.oldest_seconds for lane in own if lane.oldest_seconds is not None]
        found.append(
            StageActivity(
                stage_id=stage.stage_id, stage=stage.name,
                waiting=sum(lane.waiting for lane in own), in_flight=sum(lane.in_flight for lane in own),
                oldest_seconds=max(ages, default=None), taken_rate=_rate(status, before, (one.consumer for one in own)),
                busy=sum(one.in_flight for one in alive), slots=sum(one.slots for one in working),
                up=len(working), replicas=len(alive),
            )
        )  # fmt: skip
    return found


def by_load(replicas: Iterable[ReplicaRecord]) -> list[ReplicaRecord]:
    """Replicas that are alive, the busiest first."""
    alive = [one for one in replicas if one.alive]
    return sorted(alive, key=lambda one: (-one.in_flight / max(one.slots, 1), -one.queue_length, one.rank))


def activity_json(status: PipelineStatus, before: PipelineStatus | None = None) -> dict[str, Any]:
    """The whole as JSON."""
    replicas = {
        (stage["stage_id"], one["replica"]): one for stage in status.as_json()["stages"] for one in stage["replicas"]
    }
    return {
        "pipeline": status.spec.name,
        "time": round(status.now, 3),
        "stages": [asdict(stage) for stage in stages_of(status, before)],
        "replicas": [{"stage_id": one.stage_id, **replicas[one.key]} for one in by_load(status.replicas)],
    }


def _age(status: PipelineStatus, since: float | None) -> float | None:
    return None if since is None else round(max(status.now - since, 0.0), 3)


def _rate(status: PipelineStatus, before: PipelineStatus | None, consumers: Iterable[str]) -> float | None:
    """Deliveries a second; those of a consumer that was made anew meanwhile do not count."""
    if before is None or status.now <= before.now:
        return None
    changes = (status.depths[one].delivered - before.depths[one].delivered for one in consumers if one in before.depths)
    return round(sum(max(change, 0) for change in changes) / (status.now - before.now), 2)
