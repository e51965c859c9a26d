"""Faults of stages that read each other while they run: writers and readers die and hang in the middle of a flow, or are slow."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from functools import partial

from omnibus.client.producer import Producer
from tests.chaos.clients.planned_request import Wish
from tests.chaos.nemeses import broker
from tests.chaos.nemeses.processes import BETWEEN
from tests.chaos.row import Battle
from tests.chaos.setups import HEARTBEAT, flow_wish

WRITER, SPEAKER, SINGER = 0, 1, 2
MIDDLE = 0.3
"""Seconds of a flow, at most, before its writer or reader is struck."""
LOAD, PACE = 1 << 20, 0.1
"""Bytes of each chunk of a heavy flow, several times what a writer may be ahead in all, and the seconds that its reader takes."""
HELD = 1.0
"""Seconds that a writer of a heavy flow takes at least when its reader holds it up; by itself it takes a fraction."""


async def kill_producer(battle: Battle) -> None:
    """Kill those that write a flow of chunks, or a text."""
    for stage_id in (WRITER, SPEAKER, WRITER, SPEAKER):
        await _kill(battle, stage_id)


async def kill_consumer(battle: Battle) -> None:
    """Kill those that read; one writes, too. Then a writer and its reader at once."""
    for stage_ids in ((SPEAKER,), (SINGER,), (SINGER,), (WRITER, SPEAKER)):
        await _kill(battle, *stage_ids)


async def silence_producer(battle: Battle) -> None:
    """Stop a writer, until others have gone on with its flow; then it goes on as well. The last one's reader is a caller."""
    for stage_id in (WRITER, SPEAKER, SINGER):
        one = await battle.victim(stage_id)
        await battle.freeze(one.pid, f"replica {stage_id}.{one.replica}", HEARTBEAT + 1.5, battle.in_hand(one))
        await battle.crowd.more(BETWEEN)
        await battle.cluster.wait_up()


async def kill_nats(battle: Battle) -> None:
    """nats-server alone, at once back and later; then in the moment in which a writer dies, or a reader."""
    await broker.kill_nats(battle)
    for stage_id in (WRITER, SPEAKER, SINGER):
        battle.strike_replica(await battle.victim(stage_id), signal.SIGKILL)
        battle.note("SIGKILL", "nats-server")
        await battle.cluster.kill_nats(outage=battle.random.uniform(0.0, 1.0))
        await battle.crowd.more(BETWEEN)
        await battle.cluster.wait_up()


async def slow_consumer(battle: Battle) -> None:
    """Readers that are much slower than their writers hold these up, and die or hang meanwhile; some callers hardly read."""
    battle.note("slow", "readers")
    callers = [battle.crowd.also("http-slow", lambda op: replace(flow_wish(op), pace=PACE)) for _ in range(4)]
    rids: list[str] = []
    for act in ("none", "kill", "stop"):
        readers = [battle.crowd.also("python", partial(_heavy_wish, rids)) for _ in range(4)]
        await battle.crowd.more(BETWEEN)
        if act != "none":
            one = await battle.victim(SPEAKER)
        if act == "kill":
            battle.strike_replica(one, signal.SIGKILL)
        if act == "stop":
            await battle.freeze(one.pid, f"replica {SPEAKER}.{one.replica}", HEARTBEAT + 1.5, battle.in_hand(one))
        await asyncio.wait(readers)
        await battle.cluster.wait_up()
    await asyncio.wait(callers)
    await _check_held(battle, rids)


def _heavy_wish(rids: list[str], op: str) -> Wish:
    """A flow of several times what a writer may be ahead; its id is noted."""
    rids.append(op)
    sampling = {"writer": {"load": LOAD, "pause": 0.0}, "speaker": {"load": LOAD, "pause": PACE}}
    return replace(flow_wish(op), sampling=sampling)


async def _check_held(battle: Battle, rids: list[str]) -> None:
    """Raise AssertionError for a heavy flow whose writer did not wait for its reader."""
    async with Producer(battle.cluster.connection) as producer:
        results = [await producer.result(battle.cluster.spec.name, rid) for rid in rids]
    for result in results:
        took = [one.finished - one.started for one in result.timings if one.stage_id == WRITER]
        assert took, f"{result.rid} is {result.state}"
        assert took[0] > HELD, f"nobody held the writer of {result.rid} up: it took {took[0]:.3f} s"


async def _kill(battle: Battle, *stage_ids: int) -> None:
    """Kill a replica of each stage, in the middle of what it has just begun."""
    victims = [await battle.victim(stage_id) for stage_id in stage_ids]
    await asyncio.sleep(battle.random.uniform(0.0, MIDDLE))  # when it strikes is what is tried
    for one in victims:
        battle.strike_replica(one, signal.SIGKILL)
    await battle.crowd.more(BETWEEN)
    await battle.cluster.wait_up()
