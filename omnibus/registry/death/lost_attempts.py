"""Lost attempts: those that ended with their replica are noted in the histories of their requests.

An engine's fault is reported by its replica. A death or a hang shows in the claims of the dead only: the failure detector that
requeued them reports them, and every orchestrator those of a replica that just fell silent. Of equal reports one counts.
"""

from __future__ import annotations

import asyncio

import msgspec

from omnibus.broker.connection import Connection, status_of
from omnibus.broker.delivery import claimed
from omnibus.errors import BrokerError, InvalidRequest
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.metrics import Metrics
from omnibus.observability.task_root import task_root
from omnibus.registry.death.claim_book import ClaimBook, Held
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.registry.presence.replica_view import ReplicaChange, ReplicaView
from omnibus.wire import codec, stores, subjects
from omnibus.wire.envelope import AttemptFailed, Task
from omnibus.wire.failed_attempt import Attempt

DIED = "replica_died"
SILENT = "replica_silent"
_MESSAGES = {
    DIED: "the replica died",
    SILENT: "the replica hung, or its host was lost: no heartbeat within the timeout",
}
_MOST_DUE = 1024
"""Silent replicas whose claims wait to be reported; those beyond leave no history."""

log = get_logger(__name__)


class LostAttempts:
    """Reports the attempts that ended with a replica. A failed report is logged: nothing depends on it."""

    def __init__(self, conn: Connection, pipeline: str) -> None:
        self._conn, self._pipeline = conn, pipeline
        self._stream = stores.work_stream(pipeline)

    async def notify(self, record: ReplicaRecord, held: Held, code: str) -> None:
        """Have all that a lost replica claimed, and that is not done, noted as failed attempts. Idempotent."""
        notified = await asyncio.gather(*(self._notify(record, *claim, code) for claim in held), return_exceptions=True)
        for error in notified:
            if isinstance(error, BrokerError | InvalidRequest):
                log.warning(LogEvent.BROKER_ERROR, pipeline=self._pipeline, error=error.message)
            elif error is not None:
                raise error

    async def _notify(self, record: ReplicaRecord, rid: str, ack_subject: str, code: str) -> None:
        task_seq, delivery = claimed(ack_subject)
        task = await self._task(rid, task_seq)
        if task is None:
            return  # acknowledged: the claim was stale, or another replica has finished it already
        attempt = Attempt(
            stage_id=record.stage_id, run=task.ticket.run, task_seq=task_seq, delivery=delivery,
            at=self._conn.clock.now(), replica=record.replica, code=code, message=_MESSAGES[code],
        )  # fmt: skip
        subject = subjects.event(self._pipeline, record.stage_id, subjects.EventKind.ATTEMPT, rid)
        event = codec.encode(AttemptFailed(rid=rid, attempt=attempt))
        await self._conn.js_publish(subject, event, subjects.attempt_id(rid, task_seq, delivery))

    async def _task(self, rid: str, task_seq: int) -> Task | None:
        body = msgspec.json.encode({"seq": task_seq})
        found = await self._conn.retried_request(f"$JS.API.DIRECT.GET.{self._stream}", body)
        if status_of(found) is not None and not found.data:
            return None
        task: Task = codec.decode(found.data, Task)
        return task if task.ticket.rid == rid else None


class SilenceListener:
    """Reports the attempts of replicas whose heartbeat ended before they were marked down."""

    def __init__(self, view: ReplicaView, claims: ClaimBook, lost: LostAttempts, metrics: Metrics) -> None:
        self._view, self._claims, self._lost, self._metrics = view, claims, lost, metrics
        self._due: asyncio.Queue[tuple[ReplicaRecord, Held]] = asyncio.Queue(_MOST_DUE)

    async def run(self) -> None:
        """Listen until cancelled."""
        unhook = self._view.on_change(self._on_message)
        try:
            while True:
                record, held = await self._due.get()
                # What a claim names was written by a worker: none may end the orchestrator.
                with task_root("lost attempts", self._metrics, stage=record.stage_id, replica=record.replica):
                    await self._lost.notify(record, held, SILENT)
        finally:
            unhook()

    def _on_message(self, change: ReplicaChange) -> None:
        """Note a replica that fell silent: the failure detector reports one that it marked down, one that left holds nothing."""
        if change.before is None or change.after is not None:
            return
        held = self._claims.held(change.before)
        if held and not self._due.full():
            self._due.put_nowait((change.before, held))
