"""Replicas that hang for good are killed, so that they are started again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Container, Iterable

from omnibus.broker.connection import Connection
from omnibus.errors import BrokerUnavailable
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.wire import codec, subjects
from omnibus.wire.control import AskClaims
from omnibus.workers.elastic_replicas import ElasticReplicas
from omnibus.workers.supervisor import Supervisor

LOOKS = 10
"""Looks in a row at which a replica must be absent before it is asked."""
_ASK_TIMEOUT = 5.0

log = get_logger(__name__)


class Absences:
    """Which instances of a supervisor have served, and are missing among the replicas that beat. Pure.

    Looks are counted, and not time: a supervisor that was suspended with its replicas sees them again before it counts on.
    """

    def __init__(self) -> None:
        self._known: dict[str, ReplicaRecord] = {}
        self._missed: Counter[str] = Counter()

    def look(self, beating: Iterable[ReplicaRecord], running: Container[str]) -> list[ReplicaRecord]:
        """Those that are missing at every LOOKSth look in a row. `running` has the instances of living processes.

        One that is still starting is not counted: it has its start-up timeout, and may hold its event loop meanwhile.
        """
        there = {record.instance: record for record in beating}
        served = {instance: record for instance, record in there.items() if record.status is not ReplicaStatus.STARTING}
        self._known = {one: record for one, record in {**self._known, **served}.items() if one in running}
        self._missed = Counter({one: 0 if one in there else self._missed[one] + 1 for one in self._known})
        return [self._known[one] for one, missed in self._missed.items() if missed and missed % LOOKS == 0]


class HangWatch:
    """Kills a supervisor's replicas whose process lives, and which neither beat for `timeout` seconds nor answer.

    Their tasks were given to others long before, when the heartbeat timeout had passed; this is for their slots, which would
    be missing for ever.
    """

    def __init__(
        self, connection: Connection, view: ReplicaView, supervisor: Supervisor | ElasticReplicas, timeout: float
    ) -> None:
        """The timeout counts from when a replica is no longer registered; 0: nothing is ever killed."""
        self._connection, self._view, self._supervisor = connection, view, supervisor
        self._timeout = timeout
        self._absences = Absences()

    async def run(self) -> None:
        """Watch until cancelled, or return at once where the timeout is 0."""
        while self._timeout > 0:
            await asyncio.sleep(self._timeout / LOOKS)
            running = self._supervisor.instances
            for record in self._absences.look(self._view.replicas(), running):
                if not await self._answers(record):
                    log.warning(LogEvent.REPLICA_HUNG, stage=record.stage_id, replica=record.replica, pid=record.pid)
                    self._supervisor.kill(record.instance)

    async def _answers(self, record: ReplicaRecord) -> bool:
        """Whether it is alive after all, as when the broker takes no heartbeats: it can still be talked to then."""
        subject = subjects.ask(self._view.pipeline, *record.key)
        try:
            await self._connection.request(subject, codec.encode(AskClaims()), timeout=_ASK_TIMEOUT)
        except BrokerUnavailable:
            return not self._connection.connected
        return True
