"""Faults of nats-server: killed, hung, stopped in order; the leader of three, and all three in turn."""

from __future__ import annotations

import asyncio
import signal

from omnibus.wire import stores
from tests.chaos.nemeses.processes import BETWEEN
from tests.chaos.row import Battle
from tests.chaos.setups import HEARTBEAT
from tests.support.small_disk import empty, fill
from tests.support.three_nodes import NODES, ThreeNodes
from tests.support.waiting import eventually

CATCH_UP = 30.0
"""Seconds for a node that is back to have every copy up to date."""
FULL = 3.0
"""Seconds that the disk stays full."""


async def kill_nats(battle: Battle) -> None:
    """Back at once, and later only after every heartbeat is overdue."""
    for outage in (0.0, HEARTBEAT + 1.0):
        battle.note("SIGKILL", "nats-server")
        await battle.cluster.kill_nats(outage=outage)
        await battle.crowd.more(BETWEEN)
        await battle.cluster.wait_up()


async def stop_nats(battle: Battle) -> None:
    pid = battle.cluster.nats.pid
    assert pid is not None
    await battle.freeze(pid, "nats-server", HEARTBEAT + 1.0)
    await battle.crowd.more(2 * BETWEEN)


async def end_nats(battle: Battle) -> None:
    battle.note("SIGTERM", "nats-server")
    await battle.cluster.end_nats()
    await battle.crowd.more(2 * BETWEEN)


async def kill_leader(battle: Battle) -> None:
    """The server that leads the work stream."""
    nodes, stream = _nodes(battle)
    leader = await nodes.leader_of(battle.cluster.connection, stream)
    battle.note("SIGKILL", f"node {leader}, leader of {stream}")
    await nodes.end_node(leader, signal.SIGKILL)
    await battle.crowd.more(2 * BETWEEN)
    await nodes.start_node(leader)
    await _whole(battle)


async def stop_leader(battle: Battle) -> None:
    """It hangs: the others elect another one, and it comes back as a follower."""
    nodes, stream = _nodes(battle)
    leader = await nodes.leader_of(battle.cluster.connection, stream)
    await battle.freeze(nodes.pid(leader), f"node {leader}, leader of {stream}", 8.0)
    await battle.crowd.more(2 * BETWEEN)
    await _whole(battle)


async def roll_cluster(battle: Battle) -> None:
    """Each node in turn stops in order and comes back, once the others have all that it had."""
    nodes, _ = _nodes(battle)
    for node in NODES:
        await _whole(battle)
        battle.note("SIGTERM", f"node {node}")
        await nodes.end_node(node, signal.SIGTERM)
        await nodes.start_node(node)
        await battle.crowd.more(BETWEEN)
    await _whole(battle)


async def fill_disk(battle: Battle) -> None:
    """The disk fills up under load. An operator makes room, and starts the server again."""
    folder = battle.cluster.folder
    battle.note("disk full", "nats-server")
    await asyncio.to_thread(fill, folder)
    await asyncio.sleep(FULL)  # how long it stays full is what is tried
    await asyncio.to_thread(empty, folder)
    await battle.cluster.end_nats()
    await battle.crowd.more(2 * BETWEEN)


def _nodes(battle: Battle) -> tuple[ThreeNodes, str]:
    nodes = battle.cluster.nats
    assert isinstance(nodes, ThreeNodes)
    return nodes, stores.work_stream(battle.cluster.spec.name)


async def _whole(battle: Battle) -> None:
    nodes, _ = _nodes(battle)
    connection, pipeline = battle.cluster.connection, battle.cluster.spec.name
    streams = (
        stores.work_stream(pipeline),
        stores.requests_stream(pipeline),
        f"KV_{stores.requests_bucket(pipeline)}",
        f"KV_{stores.replicas_bucket(pipeline)}",
        f"OBJ_{stores.payloads_bucket(pipeline)}",
    )

    async def whole() -> bool:
        return all([await nodes.whole(connection, stream) for stream in streams])

    await eventually(whole, CATCH_UP, what="every node has caught up")
