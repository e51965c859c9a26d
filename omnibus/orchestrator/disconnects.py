"""The server's disconnect events: one comes milliseconds after the process of a replica was killed.

The orchestrators of a pipeline subscribe as one queue group, so one of them gets each event. Supervisors report deaths too;
the server also reports a host whose supervisor died with the replicas.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

import msgspec

from omnibus.broker.connection import ReceivedMessage, connect
from omnibus.broker.nats_access import NO_ACCESS, SYSTEM_ROLE, Access
from omnibus.errors import BrokerError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.metrics import Metrics
from omnibus.observability.task_root import task_root
from omnibus.registry.death.failure_detector import FailureDetector
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.wire import subjects

AT_ONCE = "Client Closed"
"""The reason that the server gives for a closed socket, such as a killed process's, unless data was under way to it."""
DEBOUNCE = 0.15
"""Seconds that a client has to come back after any other end of its connection; measured in docs/adr/0008."""
_RETRY = 5.0
"""Seconds between attempts to reach the system account."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemAccount:
    """Where disconnect events are heard."""

    url: str
    """With a user of the system account."""
    access: Access = NO_ACCESS
    account: str
    """The account whose clients are meant."""


class _Client(msgspec.Struct, frozen=True):
    name: str = ""


class _Disconnect(msgspec.Struct, frozen=True):
    client: _Client = _Client()
    reason: str = ""


class DisconnectListener:
    """Has the replicas of one pipeline declared down whose connection is gone."""

    def __init__(self, view: ReplicaView, detector: FailureDetector, metrics: Metrics) -> None:
        self._view, self._detector, self._metrics = view, detector, metrics
        self._waiting: set[asyncio.Task[None]] = set()  # bounded: one a living replica's connection

    async def run(self, system: SystemAccount) -> None:
        """Listen until cancelled. Without the system account the heartbeat timeout is what is left, and it says so."""
        while True:
            try:
                await self._listen(system)
            except BrokerError as error:
                log.warning(LogEvent.DISCONNECTS_UNAVAILABLE, pipeline=self._view.pipeline, error=error.message)
            await asyncio.sleep(_RETRY)

    async def _listen(self, system: SystemAccount) -> None:
        name, metrics = f"disconnects-{os.getpid()}", self._metrics
        async with connect(
            system.url, name=name, role=SYSTEM_ROLE, access=system.access, metrics=metrics, clock=False
        ) as conn:
            queue = f"orchestrators-{self._view.pipeline}"
            await conn.subscribe(subjects.disconnects(system.account), self._on_message, queue=queue)
            await asyncio.get_running_loop().create_future()  # until cancelled: the connection heals itself

    def _on_message(self, message: ReceivedMessage) -> None:
        event = msgspec.json.decode(message.data, type=_Disconnect)
        for record in self._view.replicas():
            if record.connection == event.client.name and record.status is not ReplicaStatus.DOWN:
                marking = self._mark_down(record, at_once=event.reason == AT_ONCE)
                task = asyncio.create_task(marking, name="mark-down")
                self._waiting.add(task)
                task.add_done_callback(self._waiting.discard)

    async def _mark_down(self, record: ReplicaRecord, *, at_once: bool) -> None:
        with task_root("disconnects", self._metrics, stage=record.stage_id, replica=record.replica):
            if not at_once:
                await asyncio.sleep(DEBOUNCE)
            if at_once or not self._is_back(record):
                await self._detector.mark_down(record)

    def _is_back(self, record: ReplicaRecord) -> bool:
        """Check whether the same life of a replica has beaten over another connection: it does when it is connected again."""
        return any(
            one.instance == record.instance and one.reconnects > record.reconnects
            for one in self._view.replicas(record.stage_id)
        )
