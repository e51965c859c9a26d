"""Replicas that hang for good are killed, so that they are started again."""

from __future__ import annotations

import asyncio
from collections import Counter

from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.registry.view import ReplicaView
from omnibus.workers.supervisor import Supervisor

_LOOKS = 10

log = get_logger(__name__)


class Watchdog:
    """Kills a supervisor's replica whose process lives and whose heartbeats have stopped for `timeout` seconds.

    Others have its tasks long before, by the heartbeat timeout; this is for its slots, which would be missing for ever. One
    that has not registered yet is left alone: it has its start-up timeout.
    """

    def __init__(self, view: ReplicaView, supervisor: Supervisor, timeout: float) -> None:
        self._view, self._supervisor = view, supervisor
        self._timeout = timeout
        self._silent: Counter[str] = Counter()
        """Looks in a row at which an instance that had registered was absent."""

    async def run(self) -> None:
        """Watch until cancelled; nothing where the timeout is 0."""
        while self._timeout > 0:
            await asyncio.sleep(self._timeout / _LOOKS)
            for name in self.look():
                log.warning(LogEvent.REPLICA_HUNG, process=name, silent=self._timeout)
                self._supervisor.kill(name)

    def look(self) -> list[str]:
        """Names of those that were absent often enough by now.

        Looks are counted, and not time: whoever was suspended together with its replicas sees them again before it counts on.
        """
        running, present = self._supervisor.instances, {record.instance for record in self._view.replicas()}
        known = (self._silent.keys() | present) & running.keys()
        self._silent = Counter({one: 0 if one in present else self._silent[one] + 1 for one in known})
        return [running[instance] for instance, looks in self._silent.items() if looks == _LOOKS]
