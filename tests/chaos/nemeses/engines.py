"""Real engines: a replica with its model, and the engine's own process under it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.chaos.row import Battle
from tests.support.processes import children_of
from tests.support.waiting import eventually

THINKER = 0
"""The stage of the language model: its engine runs in a process of its own, and its text streams."""
BETWEEN = 3
"""Operations that must end between two faults: models take their time."""
HANG = 3.0
"""Seconds that an engine hangs."""


async def kill_replica(battle: Battle) -> None:
    """Kill one replica of each stage, one after the other: none has another, so that its tasks wait for the next."""
    for stage_id in battle.random.sample(battle.arena.stages(), len(battle.arena.stages())):
        battle.strike_replica(await battle.victim(stage_id, busy=stage_id == THINKER), signal.SIGKILL)
        await battle.crowd.more(BETWEEN)
    await battle.cluster.wait_up()


async def kill_halves(battle: Battle) -> None:
    """Kill one side of the hand-over of KV after the other: with a prompt in hand, and with a text."""
    for stage_id in 2 * battle.random.sample(battle.arena.stages(), len(battle.arena.stages())):
        battle.strike_replica(await battle.victim(stage_id), signal.SIGKILL)
        await battle.crowd.more(2 * BETWEEN)
    await battle.cluster.wait_up()


async def kill_engine(battle: Battle) -> None:
    await _strike_engine(battle, signal.SIGKILL)


async def kill_omni(battle: Battle) -> None:
    """Kill the process in which vLLM-Omni computes for a stage, of one stage after the other; then a replica with its own."""
    stage_ids = battle.random.sample(battle.arena.stages(), len(battle.arena.stages()))
    for stage_id in stage_ids:
        await _strike_engine(battle, signal.SIGKILL, stage_id)
    battle.strike_replica(await battle.victim(stage_ids[0]), signal.SIGKILL)
    await battle.crowd.more(BETWEEN)
    await battle.cluster.wait_up()


async def end_engine(battle: Battle) -> None:
    await _strike_engine(battle, signal.SIGTERM)


async def stop_engine(battle: Battle) -> None:
    """It hangs for a while under a replica that lives."""
    pid, target = await _engine(battle)
    await battle.freeze(pid, target, HANG)
    await battle.crowd.more(2 * BETWEEN)


async def stall_engine_core(battle: Battle) -> None:
    """It stops for good under a replica that lives: the only one of its stage, which has to start again."""
    pid, target = await _engine(battle)
    battle.note("SIGSTOP", target)
    os.kill(pid, signal.SIGSTOP)
    await battle.crowd.more(2 * BETWEEN)
    await battle.cluster.wait_up()
    await eventually(lambda: not Path(f"/proc/{pid}").exists(), battle.arena.within, what="the stopped engine is gone")


async def kill_orchestrator(battle: Battle) -> None:
    battle.note("SIGKILL", "orchestrator")
    await battle.cluster.kill("orchestrator")
    await battle.cluster.orchestrator()
    await battle.crowd.more(2 * BETWEEN)


async def kill_nats(battle: Battle) -> None:
    battle.note("SIGKILL", "nats-server")
    await battle.cluster.kill_nats(outage=0.5)
    await battle.crowd.more(2 * BETWEEN)


async def _strike_engine(battle: Battle, number: signal.Signals, stage_id: int = THINKER) -> None:
    pid, target = await _engine(battle, stage_id)
    battle.note(number.name, target)
    os.kill(pid, number)
    await battle.crowd.more(BETWEEN)
    await battle.cluster.wait_up()


async def _engine(battle: Battle, stage_id: int = THINKER) -> tuple[int, str]:
    """Process id and name of a stage's engine, with a task in hand."""
    one = await battle.victim(stage_id)
    found = await eventually(
        lambda: children_of(one.pid, "EngineCore"), battle.arena.within, what="the engine's process"
    )
    return found[0], f"engine of replica {stage_id}.{one.replica}"
