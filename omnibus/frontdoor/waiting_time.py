"""The time in which a caller's request waits for its stages: what is left of an answer's time is the front door's own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from starlette.types import Scope

WAITED: Final = "waited"
"""Key of a scope's state under which its time is."""


class WaitingTime:
    """Seconds in which at least one part of a request was waited for."""

    def __init__(self) -> None:
        self._before, self._since, self._open = 0.0, 0.0, 0

    @property
    def seconds(self) -> float:
        return self._before + (time.perf_counter() - self._since if self._open else 0.0)

    def begin(self) -> None:
        """One part more is waited for."""
        if not self._open:
            self._since = time.perf_counter()
        self._open += 1

    def end(self) -> None:
        """One of them has come."""
        self._open -= 1
        if not self._open:
            self._before += time.perf_counter() - self._since


@contextmanager
def waiting(scope: Scope) -> Iterator[None]:
    """Count the time of the block as waiting; that of a line of a batch, which has no answer of its own, counts for nothing."""
    waited: WaitingTime | None = scope["state"].get(WAITED)
    if waited is None:
        yield
        return
    waited.begin()
    try:
        yield
    finally:
        waited.end()
