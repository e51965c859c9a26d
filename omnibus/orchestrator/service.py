"""The orchestrator: events in, effects out; and raw requests in, admitted.

Any number of them share the durable consumers of a pipeline. All that one of them knows is in the queue and in the ledger;
only the ids of stopped requests are remembered, so that what still arrives of them is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from omnibus.broker.connection import Connection, ReceivedMessage
from omnibus.broker.delivery import Delivery
from omnibus.broker.puller import Puller
from omnibus.errors import BrokerError
from omnibus.ledger.performer import Performer
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.orchestrator.disconnects import DisconnectListener, SystemAccount
from omnibus.orchestrator.event_telemetry import EventTelemetry
from omnibus.orchestrator.forwarding import Forwarder
from omnibus.orchestrator.intake import Intake
from omnibus.orchestrator.orphan_cleanup import OrphanCleanup
from omnibus.orchestrator.rerouting import Rerouting
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.choice.director import Director
from omnibus.registry.death.claim_book import ClaimBook
from omnibus.registry.death.failure_detector import FailureDetector
from omnibus.registry.death.lost_attempts import LostAttempts, SilenceListener
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.requests.cancellations import Cancellations
from omnibus.wire import codec, subjects
from omnibus.wire.control import Cancel, Control

CONCURRENCY = 256
"""Events that one orchestrator has in hand; the bound on its memory."""
RAW_CONCURRENCY = 64
"""Raw requests that one orchestrator admits at the same time."""
_DRAIN = 5.0
_RETRY = 0.5
"""Seconds after which an event that met an outage is delivered again."""
_LONGEST_RETRY = 10.0
"""The same for an event that nobody can handle, so that it costs next to nothing; the delay doubles up to here."""

log = get_logger(__name__)
Handler = Callable[[Delivery], Awaitable[None]]


class OrchestratorService:
    """Serves one pipeline until `run` is cancelled; what it then has in hand is finished or delivered to others."""

    def __init__(self, connection: Connection, spec: PipelineSpec, *, system: SystemAccount | None = None) -> None:
        """`system` is the account with the disconnect events; without it, only the heartbeat timeout shows a lost host."""
        self._connection, self._spec, self._system = connection, spec, system
        self._view = ReplicaView(connection, spec.name, timeout=spec.heartbeat_timeout)
        self._claims = ClaimBook(connection, spec.name)
        self._director = Director(connection, spec, view=self._view)
        self._performer = performer = Performer(connection, spec.name, lane_of=self._director.lane)
        self._stopped = Cancellations()
        telemetry = EventTelemetry(connection.metrics, spec.name, connection.clock)
        self._forwarder = Forwarder(performer, self._stopped, telemetry)
        self._intake = Intake(connection, performer, spec)

    async def run(self) -> None:
        """Serve; returns only by cancellation. Raises BrokerError when the pipeline is not laid out on the broker."""
        control = await self._connection.subscribe(subjects.ctl_all(self._spec.name), self._on_message)
        orphans = await self._connection.subscribe(
            subjects.questions(self._spec.name, "orphans"), self._on_orphans, queue="orchestrators"
        )
        try:
            async with self._view, self._claims, self._director, asyncio.TaskGroup() as group:
                group.create_task(self._serve_events(), name="orchestrator-events")
                group.create_task(self._serve_requests(), name="orchestrator-requests")
                rerouting = Rerouting(self._connection, self._spec, self._view)
                group.create_task(rerouting.run(), name="orchestrator-rerouting")
                orphan_cleanup = OrphanCleanup(self._connection, self._spec.name, self._performer)
                group.create_task(orphan_cleanup.run(), name="orchestrator-orphans")
                group.create_task(self._watch_disconnects(), name="orchestrator-disconnects")
                lost = LostAttempts(self._connection, self._spec.name)
                silence = SilenceListener(self._view, self._claims, lost, self._connection.metrics)
                group.create_task(silence.run(), name="orchestrator-silence")
        finally:
            await control.unsubscribe()
            await orphans.unsubscribe()

    async def _watch_disconnects(self) -> None:
        if self._system is None:
            log.warning(LogEvent.DISCONNECTS_UNAVAILABLE, pipeline=self._spec.name, error="no system account is known")
            return
        detector = FailureDetector(self._connection, self._spec.name, self._claims)
        await DisconnectListener(self._view, detector, self._connection.metrics).run(self._system)

    async def _serve_events(self) -> None:
        stream = subjects.work_stream(self._spec.name)
        consumers, lease = [subjects.EVENTS_CONSUMER], self._spec.heartbeat_timeout
        puller = Puller(self._connection, stream, consumers, step=CONCURRENCY // 8, lease=lease, label="events")
        await self._serve(puller, CONCURRENCY, self._forwarder.handle)

    async def _serve_requests(self) -> None:
        stream = subjects.requests_stream(self._spec.name)
        consumers, lease = [subjects.REQUESTS_CONSUMER], self._spec.heartbeat_timeout
        puller = Puller(self._connection, stream, consumers, lease=lease, label="requests")
        await self._serve(puller, RAW_CONCURRENCY, self._intake.handle)

    async def _serve(self, puller: Puller, credit: int, handle: Handler) -> None:
        """Handle deliveries, `credit` at a time.

        On cancellation those that wait go back to the queue, and those in hand are finished within a grace period.
        """
        running: set[asyncio.Task[None]] = set()

        def finished(task: asyncio.Task[None]) -> None:
            running.discard(task)
            puller.add_credit()

        try:
            async with puller:
                puller.add_credit(credit)
                async for delivery in puller:
                    task = asyncio.create_task(self._guarded(handle, delivery), name=delivery.subject)
                    running.add(task)
                    task.add_done_callback(finished)
        finally:
            if running:
                await asyncio.wait(running, timeout=_DRAIN)

    async def _guarded(self, handle: Handler, delivery: Delivery) -> None:
        try:
            await handle(delivery)
        except BrokerError as error:
            log.warning(LogEvent.EVENT_FAILED, subject=delivery.subject, error=str(error))
            await self._retry(delivery, _RETRY)
        except Exception:
            self._connection.metrics.errors.labels(where="orchestrator").inc()
            log.exception(LogEvent.TASK_CRASHED, subject=delivery.subject, delivery=delivery.num_delivered)
            doublings = min(delivery.num_delivered - 1, 10)
            await self._retry(delivery, min(_RETRY * 2**doublings, _LONGEST_RETRY))

    async def _retry(self, delivery: Delivery, delay: float) -> None:
        try:
            await delivery.nak(delay)
        except BrokerError:  # delivered again after the ack wait, then
            log.warning(LogEvent.ACK_FAILED, subject=delivery.subject)

    async def _on_orphans(self, message: ReceivedMessage) -> None:
        """A worker has stored something too late for its request's end."""
        rid = message.data.decode(errors="replace")
        if subjects.is_name(rid):
            await self._performer.clear_orphans(rid)
            if message.reply:
                await self._connection.publish(message.reply)

    async def _on_message(self, message: ReceivedMessage) -> None:
        order: Control = codec.decode(message.data, Control)
        if isinstance(order, Cancel):
            self._stopped.add(order.rids, max(order.until, self._connection.clock.now()), run=order.run)
