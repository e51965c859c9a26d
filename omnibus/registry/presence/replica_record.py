"""The coordinator's record of one replica, and a look at all those of a pipeline."""

from __future__ import annotations

import asyncio
import hashlib
from enum import StrEnum

import msgspec

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.errors import InvalidRequest
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.wire import codec, stores

log = get_logger(__name__)


class ReplicaStatus(StrEnum):
    """The states of a replica."""

    STARTING = "starting"
    """Its engine is loading."""
    UP = "up"
    """It takes tasks."""
    DRAINING = "draining"
    """It finishes what it has, and takes no more."""
    ERROR = "error"
    """Its engine is dead; its process ends."""
    DOWN = "down"
    """It has left, or was marked down; its id is free."""


class ReplicaRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One replica, written by itself at every heartbeat and, when it died, once by a failure detector."""

    v: int = 1
    stage_id: int
    replica: str
    """Unique in its stage while it lives."""
    instance: str
    """One life of it, named like no other: its supervisor finds the record by it, and a stranger under its id is noticed."""
    connection: str = ""
    """Name of its connection to the broker, which disconnect events carry."""
    reconnects: int = 0
    """How often that was re-established: tells a beat after an event from one that was under way."""
    status: ReplicaStatus = ReplicaStatus.STARTING
    paused: bool = False
    """Whether it drains because of a pause, and will be up again; not because it leaves."""
    directed: bool = False
    """Whether it takes tasks from a lane of its own, too."""
    queue_length: int = 0
    """Requests that its engine holds, running or waiting, and tasks that wait on its own lane."""
    slots: int = 1
    in_flight: int = 0
    """Tasks in hand."""
    host: str = ""
    pid: int = 0
    devices: str = ""
    versions: dict[str, str] = {}
    """Versions of omnibus, Python and its engine's libraries, by name."""
    registered_at: float = 0.0
    """Seconds since the epoch, on the replica's clock."""
    last_heartbeat: float = 0.0
    claims: tuple[tuple[str, str], ...] = ()
    """(request id, ack subject) of every task in hand."""
    announced: int = 0
    """Announcements of its claims before this: those here are newer than any of them."""

    reason: str = ""
    """Why its engine cannot serve, where that ends it."""
    marked_down_by: str = ""
    """A random token of the failure detector that marked it down: of several that do so at once, one alone wins."""

    @property
    def key(self) -> tuple[int, str]:
        return self.stage_id, self.replica

    @property
    def place(self) -> str:
        """The same of every life that one worker gives a replica: its host, its devices and its process of the worker."""
        process = self.instance.rpartition("-")[0]
        return hashlib.sha256(f"{self.host} {self.devices} {process}".encode()).hexdigest()[:16]

    @property
    def rank(self) -> tuple[int, int, str]:
        """Its place in a list: by stage and id."""
        return self.stage_id, len(self.replica), self.replica

    @property
    def addresses(self) -> tuple[str, ...]:
        """Hosts that it runs on; nothing connects to it, so no ports."""
        return (self.host,) if self.host else ()

    @property
    def listens(self) -> bool:
        """Whether it answers calls."""
        return self.status in (ReplicaStatus.UP, ReplicaStatus.DRAINING)

    @property
    def ready(self) -> bool:
        """Whether it takes tasks, or would but for a pause."""
        return self.status is ReplicaStatus.UP or (self.paused and self.status is ReplicaStatus.DRAINING)

    @property
    def alive(self) -> bool:
        """Whether it works on tasks, or is about to."""
        return self.status in (ReplicaStatus.STARTING, ReplicaStatus.UP, ReplicaStatus.DRAINING)


ReplicaInfo = ReplicaRecord
"""The name that users of vLLM-Omni know it by."""


def read_record(key: str, data: bytes) -> ReplicaRecord | None:
    """The record that is stored under a key; None, with a warning, for one of a newer version or none of ours."""
    try:
        return codec.decode(data, ReplicaRecord)
    except InvalidRequest as error:
        log.warning(LogEvent.BROKER_ERROR, key=key, error=error.message)
        return None


async def read_replicas(connection: Connection, pipeline: str) -> list[ReplicaRecord]:
    """The replicas of a pipeline that are registered now, by stage and id; raises BrokerUnavailable."""
    bucket = Bucket(connection, stores.replicas_bucket(pipeline))
    entries = await asyncio.gather(*(bucket.get(key) for key in await bucket.keys()))
    records = (read_record(entry.key, entry.value) for entry in entries if entry is not None)
    return sorted((record for record in records if record is not None), key=lambda record: record.rank)
