"""A worker and an orchestrator on the far side of a bad network: cut off, slow, and silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from omnibus.registry.presence.replica_record import ReplicaRecord
from tests.chaos.history import Fault
from tests.chaos.nemeses.processes import BETWEEN
from tests.chaos.row import Battle
from tests.chaos.setups import HEARTBEAT
from tests.support.processes import children_of
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

STAGE = 2
"""Stage of the far replica: it streams."""
LATE = 0.15
"""Seconds by which everything is late, in each direction, on a slow network."""
OUTAGE = HEARTBEAT + 1.5
"""Seconds of a cut, longer than any lease."""
_WORKER, _ORCHESTRATOR = "worker-far", "orchestrator-far"


async def cut(battle: Battle) -> None:
    """Connections are reset, and refused for a while: first for a moment, then for longer than a lease."""
    async with _far(battle) as proxy:
        proxy.drop()
        battle.note("reset", "far side")
        await battle.crowd.more(BETWEEN)
        await _for_a_while(battle, "cut", proxy.cut, proxy)


async def slow(battle: Battle) -> None:
    async with _far(battle) as proxy:
        battle.note("delay", "far side")
        proxy.delay(LATE)
        await battle.crowd.more(3 * BETWEEN)
        proxy.heal()
        await battle.crowd.more(BETWEEN)


async def black_hole(battle: Battle) -> None:
    """Nothing arrives and nobody is told: a lost host, until it comes back with all that it had to say."""
    async with _far(battle) as proxy:
        await _for_a_while(battle, "black hole", proxy.black_hole, proxy)


async def _for_a_while(battle: Battle, what: str, act: Callable[[], None], proxy: Proxy) -> None:
    held = await _held(battle)
    battle.history.add(Fault(what=what, target="far side", held=held, until=time.time() + OUTAGE))
    act()
    await asyncio.sleep(OUTAGE)  # how long the network fails is what is tried
    proxy.heal()
    await battle.crowd.more(2 * BETWEEN)


@asynccontextmanager
async def _far(battle: Battle) -> AsyncIterator[Proxy]:
    """One more worker and one more orchestrator, reached over a network that fails on demand; gone in order at the end."""
    cluster = battle.cluster
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(cluster.nats.url))
        system = await stack.enter_async_context(Proxy(cluster.nats.system_url))
        env = {"OMNIBUS_NATS_URL": proxy.url, "OMNIBUS_NATS_SYSTEM_URL": system.url}
        await cluster.worker(STAGE, 1, _WORKER, env)
        await cluster.orchestrator(_ORCHESTRATOR, env)
        await eventually(lambda: _replica(battle) is not None, 2 * battle.arena.within, what="the far replica is up")
        try:
            yield proxy
        finally:
            proxy.heal()
            await cluster.stop(_WORKER)
            await cluster.stop(_ORCHESTRATOR)


async def _held(battle: Battle) -> tuple[tuple[str, int], ...]:
    """Claims of the far replica, in the moment in which it begins one more task."""

    def held() -> set[tuple[str, int]]:
        one = _replica(battle)
        return set(battle.in_hand(one)) if one is not None else set()

    before = held()
    await eventually(lambda: held() - before, battle.arena.within, what="the far replica begins a task")
    return tuple(sorted(held()))


def _replica(battle: Battle) -> ReplicaRecord | None:
    """The far one, by its process, when it is up."""
    pids = children_of(battle.cluster.pid(_WORKER))
    return next((one for one in battle.replicas(STAGE) if one.pid in pids), None)
