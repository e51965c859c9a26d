"""One scenario under way, as its nemesis sees it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from dataclasses import dataclass

from msgspec.structs import replace

from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from tests.chaos.clients.crowd import Crowd
from tests.chaos.history import Fault, History
from tests.chaos.setups import Arena
from tests.support.cluster import Cluster
from tests.support.waiting import eventually


@dataclass(frozen=True, slots=True)
class Battle:
    """The tools of a nemesis; it notes each fault at the moment it strikes."""

    arena: Arena
    history: History
    crowd: Crowd
    random: random.Random

    @property
    def cluster(self) -> Cluster:
        return self.arena.cluster

    def replicas(self, stage_id: int) -> list[ReplicaRecord]:
        """Those that are up."""
        return [one for one in self.cluster.view.replicas(stage_id) if one.status is ReplicaStatus.UP]

    def in_hand(self, *replicas: ReplicaRecord) -> tuple[tuple[str, int], ...]:
        """(request id, stage) of what replicas hold, as far as they said: without what has ended since."""
        claims, ledger = self.arena.claims, self.arena.ledger
        return tuple(
            (rid, one.stage_id) for one in replicas for rid, _ in claims.held(one) if not ledger.all_ended([rid])
        )

    async def victim(self, stage_id: int, *, busy: bool = True) -> ReplicaRecord:
        """A replica to strike; a busy one has begun a task in this moment: what it claimed before may be finished by now."""
        before = {one.key: set(self.in_hand(one)) for one in self.replicas(stage_id)}

        def found() -> ReplicaRecord | None:
            candidates = [
                one
                for one in self.replicas(stage_id)
                if not busy or set(self.in_hand(one)) - before.setdefault(one.key, set())
            ]
            return self.random.choice(candidates) if candidates else None

        one = await eventually(found, self.arena.within, what=f"a replica of stage {stage_id} to strike")
        assert one is not None
        return one

    def strike_replica(self, one: ReplicaRecord, number: signal.Signals) -> None:
        """Send a signal to a replica's process, and note what it had in hand."""
        self.note(number.name, f"replica {one.stage_id}.{one.replica}", self.in_hand(one))
        os.kill(one.pid, number)

    def strike(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one of the product's processes, which goes on to be expected to run."""
        self.note(number.name, name)
        os.kill(self.cluster.pid(name), number)

    async def freeze(self, pid: int, target: str, seconds: float, held: tuple[tuple[str, int], ...] = ()) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        fault = Fault(what="SIGSTOP", target=target, held=held, until=time.time() + seconds)
        self.history.add(fault)
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)  # how long it hangs is what is tried
        finally:
            os.kill(pid, signal.SIGCONT)

    def note(self, what: str, target: str, held: tuple[tuple[str, int], ...] = ()) -> None:
        self.history.add(Fault(what=what, target=target, held=held))

    def over(self, target: str) -> None:
        """Note that the last fault of this name is over now."""
        events = self.history.events
        index = max(at for at, event in enumerate(events) if isinstance(event, Fault) and event.target == target)
        events[index] = replace(events[index], until=time.time())
