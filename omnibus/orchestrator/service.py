"""The orchestrator: events in, effects out; and raw requests in, admitted.

Any number of them share the durable consumers of a pipeline. All that one of them knows is in the queue and in the ledger;
only the ids of stopped requests are remembered, so that what still arrives of them is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from omnibus.broker.connection import Connection, ReceivedMessage
from omnibus.broker.delivery_loop import DeliveryLoop
from omnibus.broker.puller import Puller
from omnibus.ledger.performer import Performer
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.orchestrator.disconnects import DisconnectListener, SystemAccount
from omnibus.orchestrator.forwarding import Forwarder
from omnibus.orchestrator.intake import Intake
from omnibus.orchestrator.orphan_cleanup import OrphanCleanup
from omnibus.orchestrator.orphan_questions import OrphanQuestions
from omnibus.orchestrator.rerouting import Rerouting
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.choice.director import Director
from omnibus.registry.death.claim_book import ClaimBook
from omnibus.registry.death.failure_detector import FailureDetector
from omnibus.registry.death.lost_attempts import LostAttempts, SilenceListener
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.requests.cancellations import Cancellations
from omnibus.wire import codec, stores, subjects
from omnibus.wire.control import Cancel, Control

CONCURRENCY = 256
"""Events that one orchestrator has in hand; the bound on its memory."""
RAW_CONCURRENCY = 64
"""Raw requests that one orchestrator admits at the same time."""

log = get_logger(__name__)


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
        self._forwarder = Forwarder(performer, self._stopped, connection)
        self._intake = Intake(connection, performer, spec)

    async def run(self) -> None:
        """Serve; returns only by cancellation. Raises BrokerError when the pipeline is not laid out on the broker."""
        control = await self._connection.subscribe(subjects.ctl_all(self._spec.name), self._on_message)
        try:
            async with self._view, self._claims, self._director, asyncio.TaskGroup() as group:
                for name, run in self._parts().items():
                    group.create_task(run, name=f"orchestrator-{name}")
        finally:
            await control.unsubscribe()

    def _parts(self) -> dict[str, Coroutine[Any, Any, None]]:
        connection, spec = self._connection, self._spec
        work, raw, lease = stores.work_stream(spec.name), stores.requests_stream(spec.name), spec.heartbeat_timeout
        events = Puller(
            connection, work, [stores.EVENTS_CONSUMER], step=CONCURRENCY // 8, lease=lease, label="events"
        )  # fmt: skip
        requests = Puller(connection, raw, [stores.REQUESTS_CONSUMER], lease=lease, label="requests")
        lost = LostAttempts(connection, spec.name)
        return {
            "events": DeliveryLoop(connection, events, self._forwarder, concurrency=CONCURRENCY).run(),
            "requests": DeliveryLoop(connection, requests, self._intake, concurrency=RAW_CONCURRENCY).run(),
            "rerouting": Rerouting(connection, spec, self._view).run(),
            "orphans": OrphanCleanup(connection, spec, self._performer).run(),
            "questions": OrphanQuestions(connection, self._performer).run(),
            "disconnects": self._watch_disconnects(),
            "silence": SilenceListener(self._view, self._claims, lost, connection.metrics).run(),
        }

    async def _watch_disconnects(self) -> None:
        if self._system is None:
            log.warning(LogEvent.DISCONNECTS_UNAVAILABLE, pipeline=self._spec.name, error="no system account is known")
            return
        detector = FailureDetector(self._connection, self._spec.name, self._claims)
        await DisconnectListener(self._view, detector, self._connection.metrics).run(self._system)

    async def _on_message(self, message: ReceivedMessage) -> None:
        order: Control = codec.decode(message.data, Control)
        if isinstance(order, Cancel):
            self._stopped.add(order.rids, max(order.until, self._connection.clock.now()), run=order.run)
