"""A replica's own record in the coordinator: claimed, kept alive, and given up."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Self

from msgspec.structs import replace

from omnibus.broker.bucket import Bucket, BucketEntry
from omnibus.errors import RevisionConflict
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.metrics import Metrics
from omnibus.observability.task_root import task_root
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from omnibus.wire import codec, stores

BEATS = 6
"""Heartbeats in the time after which silence counts as death."""

Load = Callable[[], Mapping[str, Any]]
"""Fields of the record as they are now: queue length, tasks in hand, claims."""

log = get_logger(__name__)


class Registration:
    """The record of one replica, in an `async with`: claims an id, beats, and records `down` at the end.

    Ids are the smallest free ones, `r0`, `r1`, …: names stay few, so that metrics, subjects and a directed lane survive a
    restart, and two replicas never have the same one because every write is a compare-and-set on the replica's own key.
    A record that says `down` is free to take.

    When a beat finds that the replica was declared down, or that its id belongs to another, `on_fenced` is called: the
    replica must abandon its deliveries, which others have by now. Then it registers afresh; `on_registered` is called with
    the id then and at the start.
    """

    def __init__(
        self,
        bucket: Bucket,
        record: ReplicaRecord,
        *,
        timeout: float,
        load: Load,
        on_registered: Callable[[str], Awaitable[None]],
        on_fenced: Callable[[], None],
        refresh: Callable[[], Awaitable[None]] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`record` says who registers; its id and times are filled in. `timeout` is the pipeline's heartbeat timeout.

        `refresh` is awaited before each beat, so that `load` has what only the broker can tell.
        """
        self._bucket = bucket
        self.record = record
        """The record that was written last."""
        self._timeout = timeout
        self._load = load
        self._on_registered, self._on_fenced = on_registered, on_fenced
        self._refresh = refresh
        self._metrics = metrics if metrics is not None else Metrics()
        self._notified = ""  # the id that `on_registered` heard last, none after a fencing
        self._revision = 0
        self._writing = asyncio.Lock()
        self._hurry = asyncio.Event()
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._claim()
        await self._notify_id()
        self._beating = asyncio.create_task(self._beat_on(), name=f"heartbeat-{self.record.replica}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._beating is not None:
            self._beating.cancel()
        await self.set_status(ReplicaStatus.DOWN)

    async def set_status(self, status: ReplicaStatus, reason: str = "") -> None:
        """Record a status at once, and a reason that stays; when that is impossible, the next beat does (or it expires)."""
        self.record = replace(self.record, status=status, reason=reason or self.record.reason)
        await self._try_beat()

    def hurry(self, status: ReplicaStatus | None = None) -> None:
        """Have the next beat come at once, with this status; several calls before it are one beat.

        Such as after a reconnect: observers saw the connection break, and wait for a sign of life.
        """
        if status is not None:
            self.record = replace(self.record, status=status)
        self._hurry.set()

    async def beat(self) -> None:
        """Write the record now; raises BrokerError."""
        async with self._writing:
            if self._refresh is not None:
                await self._refresh()
            self.record = replace(self.record, **self._load(), last_heartbeat=time.time())
            try:
                self._revision = await self._update(self._revision)
            except RevisionConflict:
                await self._reconcile()
            await self._notify_id()

    async def _beat_on(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout / BEATS):
                    await self._hurry.wait()
            self._hurry.clear()
            await self._try_beat()

    async def _try_beat(self) -> None:
        # Such as an exception of an engine that is asked for its load: the heart must go on beating.
        with task_root("heartbeat", self._metrics, stage=self.record.stage_id, replica=self.record.replica):
            async with asyncio.timeout(self._timeout / 2):
                await self.beat()

    async def _reconcile(self) -> None:
        """Resolve another revision: our own whose answer was lost, a failure detector's, or none, since the record expired.

        A replica that was silent for so long counts as dead: others have its deliveries by now, or soon.
        """
        entry = await self._bucket.get_confirmed(self._key)
        theirs = _decoded(entry)
        if entry is None or theirs is None or not self._is_ours(theirs):
            await self._register_afresh()
            return
        try:
            self._revision = await self._update(entry.revision)
        except RevisionConflict:
            await self._register_afresh()

    def _is_ours(self, found: ReplicaRecord) -> bool:
        if found.instance != self.record.instance:
            return False
        return found.status is not ReplicaStatus.DOWN or self.record.status is ReplicaStatus.DOWN

    async def _register_afresh(self) -> None:
        if self.record.status is ReplicaStatus.DOWN:
            return  # somebody else wrote it first
        log.warning(LogEvent.REPLICA_FENCED, stage=self.record.stage_id, replica=self.record.replica)
        self._notified = ""
        self._on_fenced()
        self.record = replace(self.record, **self._load())
        await self._claim()

    async def _claim(self) -> None:
        now = time.time()
        for number in itertools.count():
            self.record = replace(self.record, replica=f"r{number}", registered_at=now, last_heartbeat=now)
            if await self._take():
                break

    async def _notify_id(self) -> None:
        """After every beat, not only after a claim: the time for a beat may end between the two."""
        if self._notified != self.record.replica:
            await self._on_registered(self.record.replica)
            self._notified = self.record.replica

    async def _take(self) -> bool:
        """Whether the id was free, and is ours now."""
        entry = await self._bucket.get(self._key)
        owner = _decoded(entry)
        if owner is not None and owner.status is not ReplicaStatus.DOWN:
            return False
        try:
            self._revision = await self._update(entry.revision if entry is not None else 0)
        except RevisionConflict:
            return False
        return True

    @property
    def _key(self) -> str:
        return stores.replica_key(self.record.stage_id, self.record.replica)

    async def _update(self, revision: int) -> int:
        """Replace the record of this revision; 0: there is none, at most the mark of one that expired."""
        # The bucket's age limit is the heartbeat timeout, so a key needs no lifetime of its own.
        data = codec.encode(self.record)
        return await (
            self._bucket.update(self._key, data, revision) if revision else self._bucket.create(self._key, data)
        )


def _decoded(entry: BucketEntry | None) -> ReplicaRecord | None:
    """The record in an entry, None when the key is absent or expired."""
    return None if entry is None else codec.decode(entry.value, ReplicaRecord)
