"""A discrete-event simulation: processes that do one thing at a time, on machines with a number of cores.

A flow is a generator that yields what it waits for: a `Burst` of a process's CPU, a `Pause`, or the next item of a `Store`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

Flow = Generator["Burst | Pause | Store", Any, None]


@dataclass(slots=True)
class Machine:
    """Cores that processes share, first come first served."""

    cores: int
    waiting: deque[Process] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class Process:
    """One thread of a process. `wake` is by how much a burst costs more when there was nothing to do before it."""

    name: str
    machine: Machine
    wake: float = 1.0
    bursts: deque[tuple[float, Flow]] = field(default_factory=deque)
    queued: bool = False
    """Whether it runs, or waits for a core."""
    used: float = 0.0
    """Seconds of CPU so far."""


@dataclass(frozen=True, slots=True)
class Burst:
    process: Process
    seconds: float


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


@dataclass(slots=True, eq=False)
class Store:
    """Items, and the flows that wait for one, both in their order."""

    items: deque[Any] = field(default_factory=deque)
    takers: deque[Flow] = field(default_factory=deque)


class Simulation:
    """Time, and all that will happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()

    def start(self, flow: Flow, after: float = 0.0) -> None:
        """Begin a flow."""
        self._at(after, self._resume, flow, None)

    def put(self, store: Store, item: Any) -> None:
        """Give an item to the flow that waits longest, or keep it."""
        if store.takers:
            self._at(0.0, self._resume, store.takers.popleft(), item)
        else:
            store.items.append(item)

    def run(self, until: float, is_done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass."""
        while self._events and self._events[0][0] <= until and not is_done():
            self.now, _, act, arguments = heapq.heappop(self._events)
            act(*arguments)

    def _at(self, after: float, act: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (self.now + after, next(self._numbers), act, arguments))

    def _resume(self, flow: Flow, item: Any) -> None:
        try:
            wanted = flow.send(item)
        except StopIteration:
            return
        match wanted:
            case Pause(seconds):
                self._at(seconds, self._resume, flow, None)
            case Store() if wanted.items:
                self._at(0.0, self._resume, flow, wanted.items.popleft())
            case Store():
                wanted.takers.append(flow)
            case Burst(process, seconds):
                process.bursts.append((seconds if process.queued else seconds * process.wake, flow))
                if not process.queued:
                    process.queued = True
                    self._take_core(process)

    def _take_core(self, process: Process) -> None:
        machine = process.machine
        if machine.cores == 0:
            machine.waiting.append(process)
            return
        machine.cores -= 1
        seconds, flow = process.bursts.popleft()
        process.used += seconds
        self._at(seconds, self._end_burst, process, flow)

    def _end_burst(self, process: Process, flow: Flow) -> None:
        process.machine.cores += 1
        self._resume(flow, None)
        if process.machine.waiting:
            self._take_core(process.machine.waiting.popleft())
        process.queued = bool(process.bursts)
        if process.queued:
            self._take_core(process)
