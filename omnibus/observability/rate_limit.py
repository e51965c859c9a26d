"""A bound on the log lines of one event: repeated warnings are dropped and counted."""

from __future__ import annotations

import time

import structlog
from structlog.typing import EventDict, WrappedLogger


class RateLimit:
    """A processor that drops warnings and errors of one event beyond LINES in SECONDS; a later line says how many.

    Anybody who may publish can have a process warn of malformed messages: that must not fill its disk. All are counted in
    the metrics.
    """

    LINES, SECONDS = 50, 10.0

    def __init__(self) -> None:
        self._windows: dict[str, tuple[float, int]] = {}  # by event, which are few: its beginning, and lines in it

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        if method not in ("warning", "error", "exception"):
            return event
        name, now = str(event["event"]), time.monotonic()
        began, lines = self._windows.get(name, (now, 0))
        if now - began >= self.SECONDS:
            if lines > self.LINES:
                event["suppressed"] = lines - self.LINES
            began, lines = now, 0
        self._windows[name] = (began, lines + 1)
        if lines >= self.LINES:
            raise structlog.DropEvent
        return event
