"""Ids of cancelled requests, remembered until their deadline: what still arrives of them is dropped."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

MOST = 100_000
"""Ids remembered at the same time; beyond it, the one that ends first is forgotten."""


class Cancellations:
    """Bounded memory of cancelled ids. Times are seconds since the epoch."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._until: dict[str, float] = {}
        self._last_run: dict[str, float] = {}
        self._ends: list[tuple[float, str]] = []

    def add(self, rids: Iterable[str], until: float, *, run: float | None = None) -> None:
        """Remember `rids` at least until then, up to this run; adding one again never narrows its memory.

        A request that an operator opened again has a later `run`, which is not meant. None: every run.
        """
        for rid in rids:
            self._last_run[rid] = max(self._last_run.get(rid, 0), math.inf if run is None else run)
            if self._until.get(rid, 0.0) < until:
                self._until[rid] = until
                heapq.heappush(self._ends, (until, rid))
        while len(self._until) > self._most:
            self._forget_first()

    def holds(self, rid: str, now: float, *, run: int) -> bool:
        """Whether this run of the request was cancelled; forgets what ended before `now`."""
        while self._ends and self._ends[0][0] <= now:
            self._forget_first()
        return run <= self._last_run.get(rid, 0)

    def _forget_first(self) -> None:
        until, rid = heapq.heappop(self._ends)
        if self._until.get(rid) == until:  # else an entry that a later one replaced
            del self._until[rid], self._last_run[rid]
