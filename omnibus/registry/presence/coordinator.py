"""The coordinator under the names that users of vLLM-Omni know: one client for a replica, one for whoever looks on.

Both sit on what the product itself uses, `heartbeat.Registration` and `view.ReplicaView`; there is no process to
start, to restart or to lose: the records are in the broker.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.registry.presence.heartbeat import Registration
from omnibus.registry.presence.replica_info import ReplicaEvent, ReplicaInfo, ReplicaList
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.wire import subjects


class OmniCoordClientForStage:
    """A replica's registration, in an `async with`: registers, beats, and says `down` at the end."""

    def __init__(
        self,
        conn: Connection,
        pipeline: str,
        stage_id: int,
        *,
        heartbeat_timeout: float = 10.0,
        queue_length: Callable[[], int] | None = None,
    ) -> None:
        """`heartbeat_timeout` is the pipeline's; `queue_length` is asked at every beat, without it `update_info` tells."""
        self._notified = 0
        self._queue_length = queue_length if queue_length is not None else lambda: self._notified
        record = ReplicaRecord(
            stage_id=stage_id, replica="", instance=f"replica-{secrets.token_hex(8)}", connection=conn.name,
            status=ReplicaStatus.UP,
        )  # fmt: skip
        self._registration = Registration(
            Bucket(conn, subjects.replicas_bucket(pipeline)), record, timeout=heartbeat_timeout,
            load=lambda: {"queue_length": self._queue_length()},
            on_registered=_nothing, on_fenced=lambda: None, metrics=conn.metrics,
        )  # fmt: skip
        self._open = False

    async def __aenter__(self) -> Self:
        """Raises BrokerUnavailable."""
        await self._registration.__aenter__()
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            await self.close()

    @property
    def info(self) -> ReplicaInfo:
        """What was told last; the id in it was assigned by the registration."""
        return ReplicaInfo.of(self._registration.record)

    async def update_info(self, status: ReplicaStatus | None = None, queue_length: int | None = None) -> None:
        """Tell of a new status or queue length at once. Raises ValueError for neither, RuntimeError when closed."""
        if status is None and queue_length is None:
            raise ValueError("give a status or a queue length")
        if not self._open:
            raise RuntimeError("the client is closed")
        if queue_length is not None:
            self._notified = queue_length
        await self._registration.set_status(status if status is not None else self._registration.record.status)

    async def close(self) -> None:
        """Say `down`; raises RuntimeError when closed already."""
        if not self._open:
            raise RuntimeError("the client is closed already")
        self._open = False
        await self._registration.__aexit__(None, None, None)


class OmniCoordClientForHub:
    """The replicas of a pipeline, cached, in an `async with`; complete as soon as it is entered."""

    def __init__(
        self,
        conn: Connection,
        pipeline: str,
        *,
        heartbeat_timeout: float = 10.0,
        on_event: Callable[[ReplicaEvent], None] | None = None,
    ) -> None:
        """`on_event` is called on the event loop with all news after the start."""
        self._view = ReplicaView(conn, pipeline, timeout=heartbeat_timeout)
        self._on_event = on_event

    async def __aenter__(self) -> Self:
        """Raises BrokerUnavailable."""
        await self._view.__aenter__()
        on_event = self._on_event
        if on_event is not None:
            self._view.on_change(lambda change: on_event(ReplicaEvent.of(change.before, change.after)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def get_replica_list(self) -> ReplicaList:
        """All replicas, whatever their status, by stage and id."""
        return ReplicaList.of(self._view.replicas(), time.time())

    def get_replicas_for_stage(self, stage_id: int) -> ReplicaList:
        """Those of one stage."""
        return ReplicaList.of(self._view.replicas(stage_id), time.time())

    async def close(self) -> None:
        """Stop looking; idempotent."""
        await self._view.__aexit__(None, None, None)


async def _nothing(_replica: str) -> None:
    """Nobody needs to hear the id: `info` has it."""
