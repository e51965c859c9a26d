"""Signals to the product's processes: kill -9, SIGSTOP with SIGCONT, SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence

from tests.chaos.row import Battle
from tests.chaos.setups import HEARTBEAT

Act = Callable[[Battle], Awaitable[None]]

KILLS = 10
"""Replicas that are killed, one after the other: enough tasks for a quantile."""
BETWEEN = 12
"""Operations that must end between two faults: each then hits a system at work."""
BUNDLED = 0
"""The stage with bundles."""
LISTENING = 0
"""The stage that reads open inputs."""
PAINTER, CAMERA = 0, 1
"""The stages of a film."""
RANDOM_ACTS = 10
RESPITE = 0.4
"""How often everything comes up again before the next act."""


async def kill_replica(battle: Battle) -> None:
    for _ in range(KILLS):
        stage_id = battle.random.choice([0, 1, 2, 2])  # most have the longest in hand
        battle.strike_replica(await battle.victim(stage_id), signal.SIGKILL)
        await battle.crowd.more(BETWEEN)
        await battle.cluster.wait_up()


async def break_bundles(battle: Battle) -> None:
    """Kill and stop replicas in the middle of a bundle, and kill all of them with their supervisor; then they leave in order."""
    for act in ("kill", "stop", "kill", "kill"):
        one = await battle.victim(BUNDLED)
        if act == "stop":
            await battle.freeze(one.pid, f"replica {BUNDLED}.{one.replica}", HEARTBEAT + 1.5, battle.in_hand(one))
        else:
            battle.strike_replica(one, signal.SIGKILL)
        await battle.crowd.more(BETWEEN)
        await battle.cluster.wait_up()
    battle.note("SIGKILL", f"supervisor {BUNDLED}", battle.in_hand(*battle.replicas(BUNDLED)))
    await battle.cluster.kill(f"worker-{BUNDLED}")
    await battle.cluster.worker(BUNDLED)
    await battle.crowd.more(BETWEEN)
    await battle.cluster.wait_up()
    await _end_worker(battle, BUNDLED)
    await battle.crowd.more(BETWEEN)


async def break_sessions(battle: Battle) -> None:
    """Kill what holds a session in its middle: its stage, the front door, all orchestrators, nats-server, two at once."""
    acts: list[tuple[Act, ...]] = [
        (_listener,), (_front_door,), (_orchestrators,), (_nats,),
        (_listener, _nats), (_listener, _front_door), (_orchestrators, _nats), (_front_door, _orchestrators),
    ]  # fmt: skip
    await _in_any_order(battle, acts)
    one = await battle.victim(LISTENING)
    await battle.freeze(one.pid, f"replica {LISTENING}.{one.replica}", HEARTBEAT + 1.5, battle.in_hand(one))
    await battle.crowd.more(BETWEEN)
    await battle.cluster.wait_up()


async def break_films(battle: Battle) -> None:
    """Kill what has a film in hand: its painter, its camera, the front door, all orchestrators, nats-server, two at once."""
    await _in_any_order(battle, [
        (_painter,), (_camera,), (_front_door,), (_orchestrators,), (_nats,),
        (_painter, _camera), (_camera, _nats), (_camera, _front_door), (_front_door, _nats),
    ])  # fmt: skip


async def _in_any_order(battle: Battle, acts: Sequence[Sequence[Act]]) -> None:
    for together in battle.random.sample(acts, len(acts)):
        for act in together:
            await act(battle)
        await battle.cluster.wait_up()
        await battle.crowd.more(BETWEEN)


async def stop_replica(battle: Battle) -> None:
    for stage_id in battle.random.sample([0, 1, 2], 3):
        one = await battle.victim(stage_id)
        await battle.freeze(one.pid, f"replica {stage_id}.{one.replica}", HEARTBEAT + 1.5, battle.in_hand(one))
        await battle.crowd.more(BETWEEN)
        await battle.cluster.wait_up()


async def end_replica(battle: Battle) -> None:
    """One replica leaves in order; then its worker does, with the other one."""
    stage_id = battle.random.choice([0, 1, 2])
    battle.strike_replica(await battle.victim(stage_id), signal.SIGTERM)
    await battle.crowd.more(2 * BETWEEN)
    await _end_worker(battle, stage_id)


async def kill_supervisor(battle: Battle) -> None:
    """Its replicas die with it."""
    for stage_id in battle.random.sample([0, 1, 2, 3], 2):
        battle.note("SIGKILL", f"supervisor {stage_id}", battle.in_hand(*battle.replicas(stage_id)))
        await battle.cluster.kill(f"worker-{stage_id}")
        await battle.cluster.worker(stage_id)
        await battle.crowd.more(BETWEEN)
        await battle.cluster.wait_up()


async def stop_supervisor(battle: Battle) -> None:
    """Its replicas go on, and one of them dies while nobody sees to it but the server."""
    stage_id = battle.random.choice([0, 1, 2])
    one = await battle.victim(stage_id)
    pid = battle.cluster.pid(f"worker-{stage_id}")
    battle.strike_replica(one, signal.SIGKILL)
    await battle.freeze(pid, f"supervisor {stage_id}", HEARTBEAT + 1.0)
    await battle.crowd.more(BETWEEN)


async def end_supervisor(battle: Battle) -> None:
    for stage_id in battle.random.sample([0, 1, 2, 3], 2):
        await _end_worker(battle, stage_id)
        await battle.crowd.more(BETWEEN)


async def kill_orchestrator(battle: Battle) -> None:
    """One, and later all at once."""
    for names in (battle.cluster.orchestrators[:1], battle.cluster.orchestrators):
        for name in names:
            battle.note("SIGKILL", name)
            await battle.cluster.kill(name)
        for name in names:
            await battle.cluster.orchestrator(name)
        await battle.crowd.more(BETWEEN)
        await battle.cluster.wait_up()


async def stop_orchestrator(battle: Battle) -> None:
    """With events in hand; the other one gets them when their lease is over."""
    for name in battle.cluster.orchestrators:
        await battle.freeze(battle.cluster.pid(name), name, HEARTBEAT + 1.0)
        await battle.crowd.more(BETWEEN)


async def end_orchestrator(battle: Battle) -> None:
    for name in battle.cluster.orchestrators:
        battle.note("SIGTERM", name)
        await battle.cluster.stop(name)
        await battle.cluster.orchestrator(name)
        await battle.crowd.more(BETWEEN)


async def kill_front_door(battle: Battle) -> None:
    for _ in range(2):
        battle.note("SIGKILL", "frontdoor")
        await battle.cluster.kill("frontdoor")
        await battle.cluster.front_door()
        await battle.cluster.wait_up()
        battle.over("frontdoor")
        await battle.crowd.more(BETWEEN)


async def stop_front_door(battle: Battle) -> None:
    await battle.freeze(battle.cluster.pid("frontdoor"), "frontdoor", HEARTBEAT + 1.0)
    await battle.crowd.more(2 * BETWEEN)


async def end_front_door(battle: Battle) -> None:
    battle.note("SIGTERM", "frontdoor")
    await battle.cluster.stop("frontdoor")
    await battle.cluster.front_door()
    await battle.cluster.wait_up()
    battle.over("frontdoor")
    await battle.crowd.more(BETWEEN)


async def two_at_once(battle: Battle) -> None:
    """A supervisor or a replica, and something else in the same moment."""
    for other in battle.random.sample([_nats, _orchestrators, _front_door, _replica], 3):
        one = await battle.victim(battle.random.choice([0, 1, 2]))
        battle.strike_replica(one, signal.SIGKILL)
        await other(battle)
        await battle.cluster.wait_up()
        await battle.crowd.more(BETWEEN)


async def at_random(battle: Battle) -> None:
    """One thing after the other, and often before the last one is up again."""
    acts = [_replica, _replica, _worker, _orchestrators, _front_door, _nats]
    for _ in range(RANDOM_ACTS):
        await battle.random.choice(acts)(battle)
        if battle.random.random() < RESPITE:
            await battle.cluster.wait_up()
        await asyncio.sleep(battle.random.uniform(0.0, 1.0))  # when the next one strikes


def soak_acts() -> list[Act]:
    """Faults that may happen again and again, while the processes that are sampled live on."""
    return [_replica, _replica, _second_orchestrator, _nats]


def process_deaths() -> list[Act]:
    """The death of each kind of process, which comes back."""
    return [_front_door, _orchestrators, _worker, _nats]


async def _second_orchestrator(battle: Battle) -> None:
    name = battle.cluster.orchestrators[-1]
    battle.note("SIGKILL", name)
    await battle.cluster.kill(name)
    await battle.cluster.orchestrator(name)


async def _worker(battle: Battle) -> None:
    stage_id = battle.random.choice([0, 1, 2, 3])
    battle.note("SIGKILL", f"supervisor {stage_id}", battle.in_hand(*battle.replicas(stage_id)))
    await battle.cluster.kill(f"worker-{stage_id}")
    await battle.cluster.worker(stage_id)


async def _nats(battle: Battle) -> None:
    battle.note("SIGKILL", "nats-server")
    await battle.cluster.kill_nats(outage=battle.random.uniform(0.0, 1.0))


async def _orchestrators(battle: Battle) -> None:
    for name in battle.cluster.orchestrators:
        battle.note("SIGKILL", name)
        await battle.cluster.kill(name)
        await battle.cluster.orchestrator(name)


async def _front_door(battle: Battle) -> None:
    battle.note("SIGKILL", "frontdoor")
    await battle.cluster.kill("frontdoor")
    await battle.cluster.front_door()
    await battle.cluster.wait_up()
    battle.over("frontdoor")


async def _listener(battle: Battle) -> None:
    battle.strike_replica(await battle.victim(LISTENING), signal.SIGKILL)


async def _painter(battle: Battle) -> None:
    battle.strike_replica(await battle.victim(PAINTER), signal.SIGKILL)


async def _camera(battle: Battle) -> None:
    battle.strike_replica(await battle.victim(CAMERA), signal.SIGKILL)


async def _replica(battle: Battle) -> None:
    battle.strike_replica(await battle.victim(battle.random.choice([0, 1, 2]), busy=False), signal.SIGKILL)


async def _end_worker(battle: Battle, stage_id: int) -> None:
    battle.note("SIGTERM", f"supervisor {stage_id}")
    await battle.cluster.stop(f"worker-{stage_id}")
    await battle.cluster.worker(stage_id)
    await battle.cluster.wait_up()
