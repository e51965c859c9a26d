"""Faults by clients: requests that kill, requests that cannot be read, readers that hardly read, clocks that jump."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import urlsplit

from omnibus.wire import subjects
from tests.chaos.clients.planned_request import Wish
from tests.chaos.nemeses.processes import BETWEEN
from tests.chaos.row import Battle
from tests.chaos.setups import BROKEN, POISON, sim_wish
from tests.support.clock_step import ClockStep

GARBAGE = b"\xc1 no request"
LONG, PACE = 2500, 0.003
"""Words of a text that a slow reader is sent at once, and the seconds that it takes for each."""
HOUR = 3600


async def poison(battle: Battle) -> None:
    """Requests that kill every replica that runs them, that fail at every attempt, and that are none."""
    for front_door, name in (("python", POISON), ("raw", BROKEN), ("python", BROKEN)):
        battle.note(name, f"{front_door} request")
        await battle.crowd.also(front_door, lambda op, name=name: doomed(f"{op}-{name}"))
        await battle.crowd.more(BETWEEN)
    battle.note("garbage", "raw request")
    await battle.crowd.also("raw", lambda op: replace(doomed(op), body=GARBAGE))
    await battle.crowd.more(BETWEEN)


async def stall_thread(battle: Battle) -> None:
    """Requests that block a thread for ever: of a stage with two replicas, and of one with a single replica."""
    for stage, modality in (("first", "text"), ("painter", "image")):
        stuck = {stage: {"stall_on": {"rid": "."}}}
        battle.note("stall", f"thread of {stage}")
        await battle.crowd.also(
            "python",
            lambda op, stuck=stuck, modality=modality: replace(doomed(op), modalities=(modality,), sampling=stuck),
        )
        await battle.crowd.more(BETWEEN)


async def slow_consumer(battle: Battle) -> None:
    """Three that read their streams slowly, and one on NATS that asks for every delta and reads nothing."""
    with _deaf_subscriber(battle):
        battle.note("slow", "readers")
        readers = [battle.crowd.also("http-slow", long_wish) for _ in range(3)]
        await battle.crowd.more(3 * BETWEEN)
        await asyncio.wait(readers)


async def step_clock(battle: Battle) -> None:
    """Step the clock of the front door's host: an hour ahead, an hour behind, and right again."""
    clock = ClockStep(battle.cluster.folder)
    await _restart_front_door(battle, clock.env)
    for seconds in (HOUR, -HOUR, 0):
        battle.note(f"clock {seconds:+d} s", "client")
        clock.set(seconds)
        await battle.crowd.more(2 * BETWEEN)
    await _restart_front_door(battle, {})


def doomed(op: str) -> Wish:
    return replace(sim_wish(op), expects=None, doomed=True, modalities=("text",))


def long_wish(op: str) -> Wish:
    """A text that is there long before it is read."""
    text = " ".join(f"{op}.{number}" for number in range(LONG))
    return Wish(
        op=op, prompt=text, expects=text, modalities=("text",), sampling={"speaker": {"token_rate": 2500}}, pace=PACE
    )


async def _restart_front_door(battle: Battle, env: Mapping[str, str]) -> None:
    battle.note("SIGTERM", "frontdoor")
    await battle.cluster.stop("frontdoor")
    await battle.cluster.front_door(env)
    await battle.cluster.wait_up()
    battle.over("frontdoor")


@contextmanager
def _deaf_subscriber(battle: Battle) -> Iterator[None]:
    """A client of NATS that reads nothing of all that it asked for."""
    address = urlsplit(battle.cluster.nats.url)
    assert address.port is not None
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((address.hostname, address.port))
        everything = subjects.out_all(battle.cluster.spec.name, "any").replace("any", "*")
        deaf.sendall(f'CONNECT {{"verbose":false,"name":"deaf"}}\r\nSUB {everything} 1\r\n'.encode())
        yield
