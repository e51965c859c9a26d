"""The failure detector: one compare-and-set marks a dead replica down, and its winner requeues the replica's tasks.

Deaths are reported by supervisors and by the server's disconnect events; both may report one, to several orchestrators.
"""

from __future__ import annotations

import asyncio
import secrets
import time

from msgspec.structs import replace

from omnibus.broker.bucket import Bucket, transact
from omnibus.broker.connection import Connection
from omnibus.broker.delivery import consumer_of, release
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.registry.death.claim_book import ClaimBook
from omnibus.registry.death.lost_attempts import DIED, LostAttempts
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from omnibus.wire import codec, stores

log = get_logger(__name__)


class FailureDetector:
    """Marks replicas of one pipeline down."""

    def __init__(self, conn: Connection, pipeline: str, claims: ClaimBook) -> None:
        self._conn, self._pipeline = conn, pipeline
        self._claims, self._lost = claims, LostAttempts(conn, pipeline)
        self._bucket = Bucket(conn, stores.replicas_bucket(pipeline))

    async def mark_down(self, dead: ReplicaRecord) -> bool:
        """Record that this life of a replica is over; True for the one caller that did.

        That one has also returned its tasks to the queue, one NAK a claim, so that others get them at once. A replica that
        lives all the same finds out at its next heartbeat. False when it was down already, has left, or its id belongs
        to another by now. Raises BrokerError.
        """
        noticed = time.monotonic()
        record = await self._write_down(dead)
        if record is None:
            return False
        released = await self._release(record)
        await self._lost.notify(record, self._claims.held(record), DIED)
        self._claims.forget(record)
        times = self._conn.metrics.failover_seconds.labels(self._pipeline, str(record.stage_id))
        times.observe(time.monotonic() - noticed)
        log.warning(
            LogEvent.CLAIMS_RELEASED, stage=record.stage_id, replica=record.replica, tasks=[rid for rid, _ in released]
        )
        return True

    async def _write_down(self, dead: ReplicaRecord) -> ReplicaRecord | None:
        """Write `down`; returns the record before that, None when this caller was not the one to write it."""
        key = stores.replica_key(dead.stage_id, dead.replica)

        async def attempt() -> ReplicaRecord | None:
            entry = await self._bucket.get(key)
            found: ReplicaRecord | None = codec.decode(entry.value, ReplicaRecord) if entry is not None else None
            if entry is None or found is None or found.instance != dead.instance or found.status is ReplicaStatus.DOWN:
                return None
            # The nonce matters: the bucket takes a writer that finds its very bytes in place for the first one.
            down = replace(found, status=ReplicaStatus.DOWN, claims=(), marked_down_by=secrets.token_hex(8))
            await self._bucket.update(key, codec.encode(down), entry.revision)
            return found

        # A dying replica may still have written a heartbeat meanwhile.
        return await transact(attempt, f"the record of replica {dead.replica} of stage {dead.stage_id}")

    async def _release(self, record: ReplicaRecord) -> tuple[tuple[str, str], ...]:
        """Return to the queue what the replica took from the lanes that it shares.

        Invariant: a directed task is never NAKed. It would wait on the replica's own lane, which no replica reads; it is
        rerouted (`orchestrator.rerouting`).
        """
        own = stores.stage_consumer(record.stage_id, record.replica)
        held = tuple(claim for claim in self._claims.releasable(record) if consumer_of(claim[1]) != own)
        await asyncio.gather(*(release(self._conn, ack_subject) for _, ack_subject in held))
        return held
