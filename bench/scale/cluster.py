"""A pipeline as the simulation sees it: who handles which message of a request, in which order, and what each waits for."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle

from bench.scale.costs import Costs
from bench.scale.simulation import Burst, Flow, Machine, Pause, Process, Simulation, Store

HEARTBEATS = 6 / 10.0
"""Heartbeats a second of a replica: six in a heartbeat timeout of ten seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The pipeline, and where it runs."""

    stages: int = 2
    replicas: int = 1
    """Replicas of each stage."""
    slots: int = 64
    latency: float = 0.0
    """Seconds that an engine takes for a task; drawn between half of it and one and a half where `spread`."""
    spread: bool = False
    direct: bool = False
    """Workers forward themselves."""
    worker_ends: bool = False
    """Where they do, whether the last one ends the request, too."""
    orchestrators: int = 1
    producers: int = 1
    streams: int = 1
    """Streams that the requests are spread over: the broker handles one message of each at a time."""
    cores: int | None = None
    """Cores of the one machine that everything runs on; None: each process has its own."""
    broker_cores: int = 8
    """Cores of the broker's machine, where it has its own."""
    replicas_a_host: int = 8
    """Each host has a supervisor, which hears all claims and heartbeats, as every orchestrator does."""
    claims_of_all: bool = True
    """Whether supervisors hear the claims of all replicas; else they know those of their own without asking."""

    @property
    def hosts(self) -> int:
        return 1 if self.cores is not None else -(-self.stages * self.replicas // self.replicas_a_host)


@dataclass(slots=True)
class Outcome:
    """The end of a run."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    used: dict[str, float] = field(default_factory=dict)
    """CPU seconds by role; of a role with several processes, of the busiest."""

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def latency(self, percent: float) -> float:
        """Seconds within which so many of 100 were answered."""
        ordered = sorted(self.latencies)
        return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


@dataclass(slots=True)
class _Tally:
    """Requests of a run."""

    warm: int
    most: int
    begun: int = 0
    ended: int = 0
    started: float = 0.0
    latencies: list[float] = field(default_factory=list)


class Cluster:
    """One simulated pipeline under load."""

    def __init__(self, shape: Shape, costs: Costs, seed: int) -> None:
        self.shape, self.costs, self.random = shape, costs, random.Random(seed)
        self.simulation = Simulation()
        self._shared = Machine(shape.cores) if shape.cores is not None else None
        machine = self._shared or Machine(shape.broker_cores)
        self._streams = [Process("broker", machine, costs.wake) for _ in range(shape.streams)]
        # What is stored in a stream is handled one by one, what is only passed on by the thread of each connection.
        passing = 0 if shape.cores is not None else shape.broker_cores
        self._passing = [Process("passing on", machine, costs.wake) for _ in range(passing)] or self._streams
        self._orchestrators = self._processes("orchestrator", shape.orchestrators)
        self._producers = self._processes("producer", shape.producers)
        self._replicas = [self._processes("replica", shape.replicas) for _ in range(shape.stages)]
        self._queues = [Store() for _ in range(shape.stages)]
        self._turn = cycle(self._orchestrators)

    def load(self, in_flight: int, requests: int, most: float = 600.0) -> Outcome:
        """Have so many requests answered, always so many in flight; a tenth more warms up and does not count."""
        for stage, replicas in enumerate(self._replicas):
            for replica in replicas:
                for _ in range(self.shape.slots):
                    self.simulation.start(self._slot(stage, replica))
                self.simulation.start(self._beat(), self.random.random() / HEARTBEATS)
        tally = _Tally(warm=requests // 10, most=requests + requests // 10)
        for number in range(in_flight):
            self.simulation.start(self._client(self._producers[number % self.shape.producers], tally))
        self.simulation.run(most, lambda: tally.ended >= tally.most)
        return self._outcome(tally)

    def _client(self, producer: Process, tally: _Tally) -> Flow:
        while tally.begun < tally.most:
            tally.begun += 1
            sent = self.simulation.now
            yield from self._request(producer)
            tally.ended += 1
            if tally.ended == tally.warm:
                tally.started = self.simulation.now
                for process in self._all():
                    process.used = 0.0
            if tally.ended > tally.warm:
                tally.latencies.append(self.simulation.now - sent)

    def _outcome(self, tally: _Tally) -> Outcome:
        outcome = Outcome(self.simulation.now - tally.started, tally.latencies)
        for process in self._all():
            outcome.used[process.name] = max(outcome.used.get(process.name, 0.0), process.used)
        outcome.used["broker, all of it"] = sum(
            {id(one): one.used for one in (*self._streams, *self._passing)}.values()
        )
        # Supervisors only listen: what they hear is counted, not simulated.
        tasks = self.shape.stages * len(outcome.latencies) if self.shape.claims_of_all else 0
        beats = self.shape.stages * self.shape.replicas * HEARTBEATS * outcome.seconds
        outcome.used["supervisor"] = tasks * self.costs.claim + beats * self.costs.heartbeat
        return outcome

    def _request(self, producer: Process) -> Flow:
        """One request as its producer sees it: three acknowledged messages, then the notice of its end.

        `broker` is the stream that all its messages are stored in.
        """
        broker, answered = self.random.choice(self._streams), Store()
        for _ in range(3):  # timer, record, first task
            yield Burst(producer, self.costs.producer)
            yield Burst(broker, 2 * self.costs.broker)
            yield Burst(producer, self.costs.producer)
        self.simulation.put(self._queues[0], (broker, answered))
        yield answered
        yield Burst(producer, 2 * self.costs.producer)

    def _slot(self, stage: int, replica: Process) -> Flow:
        """A slot of a replica: one task after the other."""
        while True:
            broker, answered = yield self._queues[stage]
            yield from self._handled(broker, replica, 1, self.costs.replica)  # the task
            self.simulation.start(self._announced(replica))
            if self.shape.latency:
                yield Pause(self.shape.latency * (self.random.uniform(0.5, 1.5) if self.shape.spread else 1.0))
            if self.shape.direct and (stage + 1 < self.shape.stages or self.shape.worker_ends):
                yield from self._forwarded(broker, replica, self.costs.replica, stage, answered)
            else:
                yield from self._stored(broker, replica, self.costs.replica)  # the event
                self.simulation.start(self._event(broker, next(self._turn), stage, answered))
            yield from self._handled(broker, replica, 2, self.costs.replica)  # the ack, the next pull

    def _event(self, broker: Process, orchestrator: Process, stage: int, answered: Store) -> Flow:
        cost = self.costs.orchestrator
        yield from self._handled(broker, orchestrator, 1, cost)
        yield from self._forwarded(broker, orchestrator, cost, stage, answered)
        yield from self._handled(broker, orchestrator, 1, cost)  # the ack

    def _forwarded(self, broker: Process, by: Process, cost: float, stage: int, answered: Store) -> Flow:
        """The next task, or the end: record, notice; then the timer's purge."""
        if stage + 1 < self.shape.stages:
            yield from self._stored(broker, by, cost)
            self.simulation.put(self._queues[stage + 1], (broker, answered))
            return
        yield from self._stored(broker, by, cost)
        yield from self._handled(broker, by, 1, cost)
        yield Burst(broker, self.costs.broker)  # the notice, to the producer
        self.simulation.put(answered, None)
        yield from self._stored(broker, by, cost)

    def _stored(self, broker: Process, by: Process, cost: float) -> Flow:
        """A message that the broker acknowledges."""
        yield Burst(by, cost)
        yield Burst(broker, 2 * self.costs.broker)
        yield Burst(by, cost)

    def _handled(self, broker: Process, by: Process, messages: int, cost: float) -> Flow:
        """Messages between the broker and a process, which nobody waits for."""
        yield Burst(broker, messages * self.costs.broker)
        yield Burst(by, messages * cost)

    def _announced(self, replica: Process) -> Flow:
        """A claim, delivered to everybody who listens."""
        listeners = self.shape.orchestrators + (self.shape.hosts if self.shape.claims_of_all else 0)
        yield Burst(replica, self.costs.replica)
        yield Burst(self.random.choice(self._passing), self.costs.broker + listeners * self.costs.delivery)
        for orchestrator in self._orchestrators:
            yield Burst(orchestrator, self.costs.claim)

    def _beat(self) -> Flow:
        """The heartbeats of a replica, delivered to everybody who watches."""
        while True:
            watchers = self.shape.orchestrators + self.shape.hosts
            yield Burst(self.random.choice(self._passing), 2 * self.costs.broker + watchers * self.costs.delivery)
            for orchestrator in self._orchestrators:
                yield Burst(orchestrator, self.costs.heartbeat)
            yield Pause(1 / HEARTBEATS)

    def _processes(self, role: str, number: int) -> list[Process]:
        machines: Callable[[], Machine] = lambda: self._shared or Machine(1)  # noqa: E731
        return [Process(role, machines(), self.costs.wake) for _ in range(number)]

    def _all(self) -> Iterator[Process]:
        services = (self._streams, self._passing, self._orchestrators, self._producers)
        return (process for group in (*services, *self._replicas) for process in group)
