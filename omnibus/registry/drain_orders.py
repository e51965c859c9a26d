"""Drains of single replicas, kept in the broker until they are undone: the next life of a drained replica is drained, too.

An order is for a place: a process of a worker on a host with its devices. An id goes to the replica that comes first.
"""

from __future__ import annotations

from collections.abc import Iterable

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.registry.pause_state import PauseMode, PauseState
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.wire import codec, stores


class DrainOrders:
    """The drains of one pipeline. Every method raises BrokerUnavailable after about ten seconds of retries."""

    def __init__(self, conn: Connection, pipeline: str) -> None:
        self._bucket, self._pipeline = Bucket(conn, stores.PIPELINES_BUCKET), pipeline

    async def keep(self, record: ReplicaRecord) -> None:
        """Have a replica drained in all its lives; idempotent."""
        await self._bucket.put(self._key(record), codec.encode(PauseState(mode=PauseMode.WAIT)))

    async def stands(self, record: ReplicaRecord) -> bool:
        """Whether the replica in this place is to be drained."""
        return await self._bucket.get(self._key(record)) is not None

    async def lift(self, record: ReplicaRecord) -> None:
        """Undo the drain of a replica; idempotent."""
        await self._delete(self._key(record))

    async def lift_all(self, stage_ids: Iterable[int]) -> None:
        """Undo those of whole stages; idempotent."""
        for stage_id in stage_ids:
            for key in await self._bucket.keys(stores.drain_key(self._pipeline, stage_id, "")):
                await self._delete(key)

    async def _delete(self, key: str) -> None:
        if await self._bucket.get(key) is not None:
            await self._bucket.delete(key)

    def _key(self, record: ReplicaRecord) -> str:
        return stores.drain_key(self._pipeline, record.stage_id, record.place)
