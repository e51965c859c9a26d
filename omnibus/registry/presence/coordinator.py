"""The coordinator under the names that users of vLLM-Omni know: one client for a replica, one for an observer.

Both sit on what the product itself uses, `heartbeat.Registration` and `replica_view.ReplicaView`; there is no process to
start, to restart or to lose: the records are in the broker.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Self

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.registry.presence.heartbeat import Registration
from omnibus.registry.presence.replica_record import ReplicaInfo, ReplicaStatus
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.wire import stores


@dataclass(frozen=True, slots=True)
class ReplicaList:
    """Replicas at one moment."""

    replicas: list[ReplicaInfo] = field(default_factory=list)
    timestamp: float = 0.0
    """When it was made, seconds since the epoch on the reader's clock."""


class OmniCoordClientForStage:
    """A replica's registration, in an `async with`: registers, beats, and says `down` at the end."""

    def __init__(self, conn: Connection, pipeline: str, stage_id: int, *, heartbeat_timeout: float = 10.0) -> None:
        """`heartbeat_timeout` is the pipeline's."""
        self._queue_length, self._is_open = 0, False
        record = ReplicaInfo(
            stage_id=stage_id, replica="", instance=f"replica-{secrets.token_hex(8)}", connection=conn.name,
            status=ReplicaStatus.UP,
        )  # fmt: skip
        self._registration = Registration(
            Bucket(conn, stores.replicas_bucket(pipeline)), record, timeout=heartbeat_timeout,
            load=lambda: {"queue_length": self._queue_length},
            on_registered=_nothing, on_fenced=lambda: None, metrics=conn.metrics,
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        """Raises BrokerUnavailable."""
        await self._registration.__aenter__()
        self._is_open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._is_open:
            await self.close()

    @property
    def info(self) -> ReplicaInfo:
        """The state that was written last; the id in it was assigned by the registration."""
        return self._registration.record

    async def update_info(self, status: ReplicaStatus | None = None, queue_length: int | None = None) -> None:
        """Have a new status or queue length written at once; several calls before it is are one write, of the last.

        Raises ValueError for neither, RuntimeError when closed.
        """
        if status is None and queue_length is None:
            raise ValueError("give a status or a queue length")
        if not self._is_open:
            raise RuntimeError("the client is closed")
        if queue_length is not None:
            self._queue_length = queue_length
        self._registration.hurry(status)

    async def close(self) -> None:
        """Say `down`; raises RuntimeError when closed already."""
        if not self._is_open:
            raise RuntimeError("the client is closed already")
        self._is_open = False
        await self._registration.__aexit__()


class OmniCoordClientForHub(ReplicaView):
    """The replicas of a pipeline that are up, cached, in an `async with`; complete as soon as it is entered."""

    def __init__(self, conn: Connection, pipeline: str, *, heartbeat_timeout: float = 10.0) -> None:
        super().__init__(conn, pipeline, timeout=heartbeat_timeout)

    def get_replica_list(self) -> ReplicaList:
        """Those of all stages, by stage and id."""
        return self._listed(None)

    def get_replicas_for_stage(self, stage_id: int) -> ReplicaList:
        """Those of one stage."""
        return self._listed(stage_id)

    async def close(self) -> None:
        """Stop watching; idempotent."""
        await self.__aexit__()

    def _listed(self, stage_id: int | None) -> ReplicaList:
        up = [record for record in self.replicas(stage_id) if record.status is ReplicaStatus.UP]
        return ReplicaList(up, time.time())


async def _nothing(_replica: str) -> None:
    """Ignore the id: `info` has it."""
