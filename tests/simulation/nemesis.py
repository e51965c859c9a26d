"""Faults from outside: cuts, suspensions, deaths, restarts of the broker, lost payloads, living replicas marked down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omnibus.errors import BrokerError
from omnibus.registry.death.failure_detector import FailureDetector
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.wire import codec

if TYPE_CHECKING:
    from tests.simulation.loop import Process
    from tests.simulation.world import World

_WITNESS = 0.004
"""Seconds after which the server tells of a client that is gone."""


def begin(world: World) -> None:
    """Strike at random until everything is healed."""
    rate = world.faults.strikes
    if rate > 0.0 and world.faults.active:
        world.broker.at(world.loop.time() + world.rng.expovariate(rate), lambda: _strike(world))


def _strike(world: World) -> None:
    if not world.faults.active:
        return
    strike = world.rng.choice(
        (_cut, _cut, _suspend, _suspend, _kill, _restart, _forget, _lose_payload, _drain, _slander)
    )
    strike(world)
    begin(world)


def _victim(world: World) -> Process:
    alive = [process for process in world.connections if not process.dead]
    return world.rng.choice(alive or list(world.connections))


def _cut(world: World) -> None:
    process = _victim(world)
    seconds = world.rng.choice((0.2, 2.0, 5.0))
    world.trace(process.name, f"is cut off for {seconds:g} s")
    world.connections[process].cut(seconds)


def _suspend(world: World) -> None:
    process = _victim(world)
    seconds = world.rng.choice((0.5, 4.0, 8.0))
    world.trace(process.name, f"is suspended for {seconds:g} s")
    process.suspend(seconds)


def _kill(world: World) -> None:
    world.kill(_victim(world), "of a signal")


def _restart(world: World) -> None:
    """Restart the broker: every connection breaks, dedupe forgets, and the last removals may be undone."""
    world.trace("broker", "is killed and started again")
    world.broker.restart(lambda: world.faults.chance(world.faults.undone))
    for process, connection in world.connections.items():
        if not process.dead:
            connection.cut(0.2 + world.rng.random())


def _forget(world: World) -> None:
    world.trace("broker", "forgets message ids")
    world.broker.forget_ids()


def _lose_payload(world: World) -> None:
    if world.faults.lost_payloads > 0.0 and world.broker.objects.messages:
        seq = world.rng.choice(list(world.broker.objects.messages))
        world.trace("broker", f"loses {world.broker.objects.messages[seq].subject}")
        world.broker.objects.remove(seq)
    used = [slot for host in world.hosts for slot in host.slots.values() if slot.rid]
    if world.faults.lost_payloads > 0.0 and used:
        world.rng.choice(used).generation += 1


def _drain(world: World) -> None:
    replicas = [process for process in world.serving if process in world.replicas]
    if replicas:
        process = world.rng.choice(replicas)
        world.trace(process.name, "is told to leave")
        process.context.run(world.replicas[process].drain)


def _slander(world: World) -> None:
    """Mark a living replica down."""
    replicas = [process for process in world.serving if process in world.replicas]
    if replicas:
        mark_down(world, world.rng.choice(replicas))


def mark_down(world: World, process: Process) -> None:
    """Two reports of a death reach the orchestrators; each asks to mark the replica down."""
    if not world.has_registry:
        return
    records = [
        record
        for stored in world.broker.replicas.messages.values()
        if stored.data and (record := codec.decode(stored.data, ReplicaRecord)).instance == process.name
    ]
    for record in records:
        world.broker.at(world.loop.time() + _WITNESS, lambda record=record: _detector(world, record))


class _CheckedDetector(FailureDetector):
    """The product's, whose knowledge of the claims is checked when it acts on them."""

    def __init__(self, world: World, *given: Any) -> None:
        super().__init__(*given)
        self._world = world

    async def _release(self, record: ReplicaRecord) -> tuple[tuple[str, str], ...]:
        self._world.checker.marked_down(record, self._claims.held(record), self._world.held_by(record.instance))
        return await super()._release(record)


def _detector(world: World, record: ReplicaRecord) -> None:
    for process, claims in world.judges.items():
        if not process.dead:
            detector = _CheckedDetector(world, world.connections[process], world.spec.name, claims)
            process.spawn(_declare(detector, record), "verdict")


async def _declare(detector: FailureDetector, record: ReplicaRecord) -> None:
    try:
        await detector.mark_down(record)
    except BrokerError:
        return  # the lease ends
