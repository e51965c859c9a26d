"""Ids of cancelled requests, remembered until their deadline: what still arrives of them is dropped."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

from omnibus.wire.names import is_name

MOST = 100_000
"""Ids remembered at the same time; beyond it, the one that ends first is forgotten."""


class Cancellations:
    """Bounded memory of cancelled ids. Times are seconds since the epoch."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._known: dict[str, tuple[float, float]] = {}
        """Until when, and up to which run."""
        self._ends: list[tuple[float, str]] = []

    def add(self, rids: Iterable[str], until: float, *, run: float | None = None) -> None:
        """Remember `rids` at least until then, up to this run; adding one again never narrows its memory.

        A request that an operator opened again has a later `run`, which is not meant. None: every run. What is no name of a
        request, or ends at no time, is not remembered: anybody may send it.
        """
        for rid in filter(is_name, rids):
            known_until, known_run = self._known.get(rid, (0.0, 0.0))
            if until > known_until:
                heapq.heappush(self._ends, (until, rid))
            elif not known_until:
                continue
            self._known[rid] = max(known_until, until), max(known_run, math.inf if run is None else run)
        while len(self._known) > self._most:
            self._forget_first()
        if len(self._ends) > 2 * self._most:  # entries that later ones replaced
            self._ends = sorted((end, rid) for rid, (end, _) in self._known.items())

    def holds(self, rid: str, now: float, *, run: int) -> bool:
        """Whether this run of the request was cancelled; forgets what ended before `now`."""
        while self._ends and self._ends[0][0] <= now:
            self._forget_first()
        return rid in self._known and run <= self._known[rid][1]

    def _forget_first(self) -> None:
        until, rid = heapq.heappop(self._ends)
        if rid in self._known and self._known[rid][0] == until:  # else an entry that a later one replaced
            del self._known[rid]
