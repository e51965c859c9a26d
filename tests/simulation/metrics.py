"""Metrics that nobody reads, but for one: what is caught at a task's root must not happen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Self

from omnibus.observability.metrics import Metrics


class _Unread:
    """A counter, gauge or histogram, with labels or without."""

    def labels(self, *_: str, **__: str) -> Self:
        return self

    def inc(self, amount: float = 1.0) -> None: ...

    def dec(self, amount: float = 1.0) -> None: ...

    def set(self, value: float) -> None: ...

    def set_function(self, read: Callable[[], float]) -> None: ...

    def observe(self, amount: float) -> None: ...


_UNREAD = _Unread()


class SimMetrics(Metrics):
    """Metrics of one process; `caught` gets the exceptions that the product's roots catch, from inside their `except`."""

    def __init__(self, caught: Callable[[BaseException | None], None]) -> None:
        self.errors = _Errors(caught)  # type: ignore[assignment]

    def __getattr__(self, _name: str) -> Any:
        return _UNREAD


class _Errors(_Unread):
    def __init__(self, caught: Callable[[BaseException | None], None]) -> None:
        self._caught = caught

    def inc(self, amount: float = 1.0) -> None:  # noqa: ARG002
        self._caught(sys.exception())
