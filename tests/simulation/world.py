"""One interleaving: a pipeline, who serves it, who asks, what goes wrong, and what must hold all the same."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import structlog

from omnibus.registry.death.claim_book import ClaimBook
from omnibus.requests import advance
from omnibus.wire import codec
from omnibus.wire.control import Cancel, Control
from omnibus.wire.request import Request
from omnibus.workers import attempt_decision
from omnibus.workers.replica import Replica
from tests.simulation import actors, nemesis
from tests.simulation.broker import Broker, Wire
from tests.simulation.checker import Checker
from tests.simulation.connection import SimConnection
from tests.simulation.faults import Fate, Faults
from tests.simulation.graphs import DEADLINE, GRAPH_OF_HOLE, any_graph, in_memory
from tests.simulation.holes import HOLES, HOLES_IN_MEMORY
from tests.simulation.loop import Process, VirtualLoop, virtual_time
from tests.simulation.memory import SimHost, SimMemory
from tests.simulation.streams import Stored, Stream
from tests.simulation.substitutes import substitutes
from tests.simulation.watching import SimWatch

SETTLES = 70.0
"""Seconds after everything is healed in which what was accepted ends: leases, retries and put-backs take that long."""
_LATE = 30.0
"""Seconds in which a suspended process has ended its work, and found that it was too late."""
_ASKED = 90.0
"""Seconds in which the processes of a host have asked about every payload in its memory."""
_TAKEN_DOWN = 20.0
"""Seconds in which a process that was killed while it was suspended is gone."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one seed."""

    seed: int
    violations: tuple[str, ...]
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join((*self.trace, f"seed {self.seed}:", *(f"  {what}" for what in self.violations)))


class World:
    """Everything there is in one interleaving."""

    def __init__(
        self,
        seed: int,
        *,
        traced: bool = False,
        hole: str | None = None,
        hosted: bool = False,
        graph: str | None = None,
    ) -> None:
        """`hosted`: what else goes through the object store goes through shared memory of one host or two.

        `graph` is one of GRAPHS, where it is not to be drawn.
        """
        self._hole, hosted = hole, hosted or hole in HOLES_IN_MEMORY
        self.seed, self._traced, self.lines = seed, traced, list[str]()
        self.rng = random.Random(seed)
        self.loop = VirtualLoop()
        self.over = self.loop.create_future()
        """Done when nothing of this world is looked at any more."""
        self.graph, self.spec = any_graph(self.rng, graph or GRAPH_OF_HOLE.get(hole or ""))
        self.hosts: list[SimHost] = []
        if hosted:
            self.spec = in_memory(self.spec)
            self.hosts = [SimHost(f"host{number}") for number in range(self.rng.choice((1, 1, 2)))]
        self.broker = Broker(self.loop, self.rng, self.spec, self.trace)
        self.checker = Checker(self.spec, self.broker)
        self.faults = Faults(self, self.rng)
        self.broker.work.forgets = self.faults.forgets
        self.broker.on_stored = self._stored
        self.watches: list[SimWatch] = []
        self.connections: dict[Process, SimConnection] = {}
        self.poisonous: set[str] = set()
        """Requests that kill every replica that runs them."""
        self.unserved = self.rng.choice(self.spec.stages).stage_id if self.rng.random() < 0.05 else None
        """A stage without replicas: what needs it ends by its deadline."""
        self.crowd = 1
        """How many times as many requests as usual there are."""
        self.replicas: dict[Process, Replica] = {}
        self._held_at_death: dict[str, frozenset[str]] = {}
        """Ack subjects of what each dead replica had in hand, by its process's name."""
        self.judges: dict[Process, ClaimBook] = {}
        """Orchestrators, and the claims that each knows."""
        self.is_random = self.rng.random() < 0.3
        """Whether engines say something else at every attempt."""
        self.has_registry = self.graph == "directed" or self.rng.random() < 0.05
        """Whether replicas beat, and their deaths are reported."""
        self._carries = self.rng.random() < 0.7
        """Whether tasks of later stages carry the request, which is read in its record otherwise."""
        self._flavours = 0
        self._is_over = False
        self._serving: dict[Process, Callable[[], None]] = {}

    @property
    def now(self) -> float:
        return self.loop.time() + 1_700_000_000.0

    def run(self) -> Outcome:
        """See it through."""
        with ExitStack() as stack:
            stack.enter_context(virtual_time(self.loop, self.seed))
            for place, name, substitute in substitutes(registry=self.has_registry):
                stack.enter_context(patch.object(place, name, substitute))
            if self._hole is not None:
                for place, name, substitute in HOLES[self._hole](self):
                    stack.enter_context(patch.object(place, name, substitute))
            if not self._carries:
                for module in (advance, attempt_decision):
                    stack.enter_context(patch.object(module, "CARRIED_LIMIT", 0))
            self._live()
            self._take_down()
        for failure in self.loop.failures:
            self.checker.fail(f"nobody caught {failure!r}")
        return Outcome(self.seed, tuple(self.checker.violations), tuple(self.lines))

    def process(self, name: str) -> tuple[Process, SimConnection]:
        """A new process with its connection."""
        process = Process(self.loop, name)
        connection = process.context.run(SimConnection, self, process, name)
        self.connections[process] = connection
        return process, connection

    def memory(self, process: Process) -> SimMemory | None:
        """The shared memory of the host that a process runs on."""
        return SimMemory(self, process, self.rng.choice(self.hosts)) if self.hosts else None

    def serve(self, name: str, start: Callable[[Process, SimConnection], Any]) -> None:
        """Run a process, and another one like it whenever it has died."""
        if self._is_over:
            return
        process, connection = self.process(name)
        self._serving[process] = lambda: self.serve(f"{name}i", start)
        process.spawn(start(process, connection))

    def kill(self, process: Process, why: str) -> None:
        """SIGKILL. Its supervisor, where it has one, starts another a while later."""
        if process.dead:
            return
        self.trace(process.name, f"dies {why}")
        self._held_at_death[process.name] = self.held_by(process.name)
        process.kill()
        self.broker.drop(process)
        again = self._serving.pop(process, None)
        if again is not None:
            self.broker.at(self.loop.time() + self.rng.choice((0.05, 0.5, 4.0)), again)
            nemesis.mark_down(self, process)

    def held_by(self, name: str) -> frozenset[str]:
        """Ack subjects of what a replica has in hand, or had when it died."""
        if name in self._held_at_death:
            return self._held_at_death[name]
        replicas = (replica for process, replica in self.replicas.items() if process.name == name)
        return frozenset(ack_subject for replica in replicas for _, ack_subject in replica._claims.held)

    def leave(self, process: Process) -> None:
        """It ended in order, and is started again."""
        self.trace(process.name, "has left")
        process.leave()
        self.broker.drop(process)
        again = self._serving.pop(process, None)
        if again is not None:
            self.broker.at(self.loop.time() + 0.05, again)

    def accept(self, rid: str, request: Request, connection: SimConnection) -> None:
        """A producer has its acknowledgement."""
        if not connection.process.dead:
            self.trace(connection.name, f"{rid} is accepted")
            self.checker.accept(rid, request.text())

    @contextmanager
    def waiting(self, rid: str, connection: SimConnection) -> Iterator[None]:
        """Somebody waits for the end of a request."""
        if connection.process.dead:
            yield
            return
        self.checker.followers[rid] = self.checker.followers.get(rid, 0) + 1
        try:
            yield
        finally:
            self.checker.followers[rid] -= 1

    @property
    def serving(self) -> Sequence[Process]:
        return tuple(self._serving)

    def flavour(self) -> str:
        self._flavours += 1
        return f"#{self._flavours}" if self.is_random else ""

    # What happened

    def trace(self, who: str, what: str) -> None:
        if self._traced:
            self.lines.append(f"{self.loop.time():10.4f}  {who:<14} {what}")

    def answered(self, connection: SimConnection, message: Wire) -> None:
        """An ack or a NAK has arrived."""
        _, _, _, consumer, count, seq, *_ = message.subject.split(".")
        self.trace(connection.name, f"{message.data.decode()} {consumer} #{seq}, delivery {count}")
        is_there = int(seq) in self.broker.work.messages  # else it was acknowledged, and the NAK harms nobody
        if message.data == b"-NAK" and is_there and connection.process in self.judges and consumer.startswith("stage-"):
            self.checker.given_back(message.subject)

    def heard(self, connection: SimConnection, message: Wire) -> None:
        """A core message was taken in."""
        if message.subject.endswith(".ctl.all"):
            order: Control = codec.decode(message.data, Control)
            if isinstance(order, Cancel):
                self.checker.stopped(connection.process.name, order)

    def told(self, who: str, subject: str, reply: Wire, fate: Fate) -> None:
        """A request was carried out."""
        if self._traced:
            answer = reply.data[:120].decode(errors="replace") if not reply.headers else str(dict(reply.headers))[:120]
            self.trace(who, f"{subject} → {answer}{'' if fate is Fate.FINE else ' (never heard)'}")

    def _stored(self, stream: Stream, stored: Stored) -> None:
        self.checker.stored(stream, stored)
        if stream is self.broker.replicas:
            for watch in self.watches:
                watch.on_message(stored)

    # Its life

    def _live(self) -> None:
        self.checker.loses_words = self.faults.loses_words
        self.trace("world", f"pipeline {self.graph}; {self.faults}")
        actors.cast(self)
        nemesis.begin(self)
        self.loop.run(self.faults.lasts)
        self._heal()
        self._settle()
        if self.checker.violations:
            return
        self.poisonous.clear()
        if actors.retry_failed(self):
            self._settle()
        if not self.checker.is_over():
            self._stop_replicas()
            self.loop.run(self.loop.time() + DEADLINE + SETTLES, self.checker.is_over)
            self.checker.check_over(strict=not self.faults.hides_ends, except_for=self._deserted())

    def _stop_replicas(self) -> None:
        """Requests that are open now were never acknowledged: their deadlines end them without a worker."""
        for process in [process for process in self.serving if process in self.replicas]:
            del self._serving[process]
            self.kill(process, "for good")

    def _settle(self) -> None:
        self.loop.run(self.loop.time() + SETTLES + (self.spec.input_timeout or 0.0), self.checker.is_settled)
        if self.unserved is None:
            self.checker.check_settled()
        if self.hosts:
            self.loop.run(self.loop.time() + _ASKED, lambda: not any(self._left_in_memory()))
            for rid, slot in self._left_in_memory():
                self.checker.fail(f"left in memory of {rid}: {slot}")
        if any(self.checker.left_behind()):
            self.loop.run(self.loop.time() + _LATE)
            self.checker.check_left_behind(except_for=self._deserted())

    def _left_in_memory(self) -> Iterator[tuple[str, str]]:
        return (left for host in self.hosts for left in host.left_of(self.checker.records))

    def _deserted(self) -> set[str]:
        """Requests whose clients, or whoever ran them, died half-way through what they would do, or are suspended still.

        Also those with a task that nobody takes: whoever does will drop it.
        """
        stopped = {process.name.partition("-")[0] for process in self.connections if not process.finished}
        if self.unserved is not None:
            stopped |= {subject.rpartition(".")[2] for subject in self.checker.queued() if ".task." in subject}
        dead = (process.name for process in self.connections if process.dead and not process.left)
        return stopped.union(*(self.checker.ran_by[name] for name in dead))

    def _heal(self) -> None:
        self.trace("world", "is healed")
        self.faults.heal()

    def _take_down(self) -> None:
        self._is_over = True
        self._serving.clear()
        for process in self.connections:
            process.kill()
        self.over.set_result(None)
        self.loop.run(self.loop.time() + _TAKEN_DOWN)


def simulate(
    seed: int, *, traced: bool = False, hole: str | None = None, hosted: bool = False, graph: str | None = None
) -> Outcome:
    """Run one seed, with a hole planted if one is named; the same every time."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    return World(seed, traced=traced, hole=hole, hosted=hosted, graph=graph).run()
