"""The view of replicas: those of a pipeline as this process knows them, and changes of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from omnibus.broker.connection import Connection
from omnibus.broker.watch import Watch
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus, read_record
from omnibus.wire import stores

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReplicaChange:
    """News of one replica: `before` is None when it joined, `after` when it is gone."""

    before: ReplicaRecord | None
    after: ReplicaRecord | None


Listener = Callable[[ReplicaChange], None]


class ReplicaView:
    """A cached view of a pipeline's replicas, in an `async with`; complete from the start, for a late joiner too.

    Absence counts in connected time only: a record that the broker let expire during an outage is kept, and its replica
    reported gone only when it is still absent one full `timeout` after the (re)connect. All replicas beat by then.
    """

    def __init__(self, conn: Connection, pipeline: str, *, timeout: float) -> None:
        """`timeout` is the pipeline's heartbeat timeout, in seconds."""
        self.pipeline = pipeline
        self._conn, self._timeout = conn, timeout
        self._records: dict[str, ReplicaRecord] = {}
        self._absent: set[str] = set()
        self._listeners: list[Listener] = []
        self._changed = asyncio.Event()
        self._settling: asyncio.TimerHandle | None = None
        self._watch = Watch(conn, stores.replicas_bucket(pipeline), self._on_message)

    async def __aenter__(self) -> Self:
        """Returns when the view is complete; raises BrokerUnavailable."""
        await self._watch.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._settling is not None:
            self._settling.cancel()
        await self._watch.__aexit__()

    def replicas(self, stage_id: int | None = None) -> list[ReplicaRecord]:
        """The replicas of one stage, or of all, by stage and id, whatever their status."""
        found = (record for record in self._records.values() if stage_id is None or record.stage_id == stage_id)
        return sorted(found, key=lambda record: record.rank)

    def on_change(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` on the event loop with all further news; returns what takes it off again."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def wait_until(self, condition: Callable[[list[ReplicaRecord]], bool], timeout: float | None) -> None:
        """Return once the condition holds of all replicas; raises TimeoutError after `timeout` seconds (None: never)."""
        async with asyncio.timeout(timeout):
            while not condition(self.replicas()):
                self._changed.clear()
                await self._changed.wait()

    def _on_message(self, key: str, value: bytes | None, _revision: int) -> None:
        if value is None:
            self._absent.add(key)
            self._settle()
            return
        self._absent.discard(key)
        if (record := read_record(key, value)) is not None:
            before, self._records[key] = self._records.get(key), record
            self._notify(ReplicaChange(before, record))

    def _settle(self) -> None:
        """Believe what is absent, once the connection has lasted long enough for every living replica to beat."""
        since = self._conn.connected_since
        wait = self._timeout if since is None else since + self._timeout - time.monotonic()
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        if wait > 0:
            self._settling = asyncio.get_running_loop().call_later(wait, self._settle)
            return
        for key in sorted(self._absent):
            self._drop(key)
        self._absent.clear()

    def _drop(self, key: str) -> None:
        gone = self._records.pop(key, None)
        if gone is None:
            return
        if gone.status is not ReplicaStatus.DOWN:
            log.warning(LogEvent.REPLICA_EXPIRED, stage=gone.stage_id, replica=gone.replica)
        self._notify(ReplicaChange(gone, None))

    def _notify(self, change: ReplicaChange) -> None:
        self._changed.set()
        for record in (change.before, change.after):
            if record is not None:
                self._count(record.stage_id, record.status)
        for listener in tuple(self._listeners):
            listener(change)

    def _count(self, stage_id: int, status: ReplicaStatus) -> None:
        number = sum(record.status is status for record in self.replicas(stage_id))
        self._conn.metrics.replicas.labels(self.pipeline, str(stage_id), status.value).set(number)
