"""The replicas of a stage as balancers and façades see them: plain values, taken from the coordinator's records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaInfo:
    """One replica at its last heartbeat."""

    stage_id: int
    replica: str
    """Its id, which is also the name of its own lane."""
    status: ReplicaStatus = ReplicaStatus.UP
    queue_length: int = 0
    """Tasks that it has or that wait on its own lane."""
    last_heartbeat: float = 0.0
    """Seconds since the epoch, on the replica's clock."""
    registered_at: float = 0.0
    addresses: tuple[str, ...] = ()
    """Hosts that it runs on; nothing connects to it, so no ports."""
    in_flight: int = 0
    slots: int = 1
    devices: str = ""
    version: str = ""
    instance: str = ""
    """One life of it: another one under the same id has another."""

    @classmethod
    def of(cls, record: ReplicaRecord) -> ReplicaInfo:
        return cls(
            stage_id=record.stage_id, replica=record.replica, status=record.status, queue_length=record.queue_length,
            last_heartbeat=record.last_heartbeat, registered_at=record.registered_at,
            addresses=(record.host,) if record.host else (), in_flight=record.in_flight, slots=record.slots,
            devices=record.devices, version=record.version, instance=record.instance,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReplicaList:
    """Replicas at one moment."""

    replicas: list[ReplicaInfo] = field(default_factory=list)
    timestamp: float = 0.0
    """When it was made, seconds since the epoch on the reader's clock."""

    @classmethod
    def of(cls, records: Iterable[ReplicaRecord], now: float) -> ReplicaList:
        return cls([ReplicaInfo.of(record) for record in records], now)
