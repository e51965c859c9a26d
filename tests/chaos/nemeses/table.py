"""All nemeses: where each strikes, and what it may cost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.chaos.nemeses import batches, broker, engines, flows, network, processes, requests, responses, videos
from tests.chaos.row import Battle
from tests.chaos.setups import HEARTBEAT

NOTICED = HEARTBEAT + 1.0
"""Seconds in which a silent death must be answered."""
LEADER = 10.0
"""Seconds in which a cluster must answer again that lost a leader."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Bounds on the wait from a kill to the task's start elsewhere, and on the pause that all clients see; seconds."""

    p50: float | None = None
    p99: float | None = None
    longest: float | None = None
    pause: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Nemesis:
    """One row of the table."""

    name: str
    arena: str
    strike: Callable[[Battle], Awaitable[None]]
    bounds: Bounds = Bounds()
    may_fail: frozenset[str] = frozenset()
    """Codes of errors that requests may end with."""
    short: bool = False
    """Also part of the short run."""
    timed: bool = False
    """Its failovers are those of the totals."""


QUICK = Bounds(p50=0.05, p99=0.25)

NEMESES: tuple[Nemesis, ...] = (
    Nemesis(name="kill-replica", arena="chain", strike=processes.kill_replica, bounds=QUICK, short=True, timed=True),
    Nemesis(name="stop-replica", arena="chain", strike=processes.stop_replica, bounds=Bounds(longest=NOTICED)),
    Nemesis(name="end-replica", arena="chain", strike=processes.end_replica),
    Nemesis(name="kill-supervisor", arena="chain", strike=processes.kill_supervisor),
    Nemesis(name="stop-supervisor", arena="chain", strike=processes.stop_supervisor),
    Nemesis(name="end-supervisor", arena="chain", strike=processes.end_supervisor),
    Nemesis(name="kill-orchestrator", arena="chain", strike=processes.kill_orchestrator, short=True),
    Nemesis(name="stop-orchestrator", arena="chain", strike=processes.stop_orchestrator),
    Nemesis(name="end-orchestrator", arena="chain", strike=processes.end_orchestrator),
    Nemesis(name="kill-front-door", arena="chain", strike=processes.kill_front_door, short=True),
    Nemesis(name="stop-front-door", arena="chain", strike=processes.stop_front_door),
    Nemesis(name="end-front-door", arena="chain", strike=processes.end_front_door),
    Nemesis(name="kill-nats", arena="chain", strike=broker.kill_nats, short=True),
    Nemesis(name="stop-nats", arena="chain", strike=broker.stop_nats),
    Nemesis(name="end-nats", arena="chain", strike=broker.end_nats),
    Nemesis(name="cut", arena="chain", strike=network.cut),
    Nemesis(name="slow-network", arena="chain", strike=network.slow),
    Nemesis(name="black-hole", arena="chain", strike=network.black_hole, bounds=Bounds(longest=NOTICED)),
    Nemesis(name="poison", arena="chain", strike=requests.poison),
    Nemesis(name="stall-thread", arena="chain", strike=requests.stall_thread),
    Nemesis(name="slow-consumer", arena="chain", strike=requests.slow_consumer),
    Nemesis(name="step-clock", arena="chain", strike=requests.step_clock),
    Nemesis(name="two-at-once", arena="chain", strike=processes.two_at_once),
    Nemesis(name="at-random", arena="chain", strike=processes.at_random),
    Nemesis(name="batch", arena="chain", strike=batches.break_batch),
    Nemesis(name="response", arena="chain", strike=responses.break_responses),
    Nemesis(name="kill-leader", arena="three", strike=broker.kill_leader, bounds=Bounds(pause=LEADER)),
    Nemesis(name="stop-leader", arena="three", strike=broker.stop_leader),
    Nemesis(name="roll-cluster", arena="three", strike=broker.roll_cluster),
    Nemesis(name="fill-disk", arena="disk", strike=broker.fill_disk),
    Nemesis(name="companions", arena="companions", strike=processes.break_bundles, short=True),
    Nemesis(name="flow-producer", arena="flows", strike=flows.kill_producer),
    Nemesis(name="flow-consumer", arena="flows", strike=flows.kill_consumer),
    Nemesis(name="flow-nats", arena="flows", strike=flows.kill_nats),
    Nemesis(name="flow-slow", arena="flows", strike=flows.slow_consumer),
    Nemesis(name="flow-silent", arena="flows", strike=flows.silence_producer, bounds=Bounds(longest=NOTICED)),
    Nemesis(name="session", arena="sessions", strike=processes.break_sessions),
    Nemesis(name="film", arena="films", strike=processes.break_films),
    Nemesis(name="video", arena="films", strike=videos.break_videos),
    Nemesis(name="kill-tiny-replica", arena="omni-tiny", strike=engines.kill_replica),
    Nemesis(name="kill-engine", arena="omni-tiny", strike=engines.kill_engine),
    Nemesis(name="stop-engine", arena="omni-tiny", strike=engines.stop_engine),
    Nemesis(name="end-engine", arena="omni-tiny", strike=engines.end_engine),
    Nemesis(name="stall-engine-core", arena="omni-tiny", strike=engines.stall_engine_core),
    Nemesis(name="kill-tiny-orch", arena="omni-tiny", strike=engines.kill_orchestrator),
    Nemesis(name="kill-tiny-nats", arena="omni-tiny", strike=engines.kill_nats),
    Nemesis(name="prefill-decode", arena="prefill-decode", strike=engines.kill_halves),
    Nemesis(name="vllm_omni", arena="vllm_omni", strike=engines.kill_omni),
    Nemesis(name="kill-tiny-door", arena="omni-tiny", strike=processes.kill_front_door),
)
