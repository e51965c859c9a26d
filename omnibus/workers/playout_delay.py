"""How long the first piece of a sound or video is held back, so that no player runs dry behind it. Pure."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Self

REMEMBERED = 64
"""Intervals between pieces that count."""
MARGIN = 1.5
"""The next interval may be so many times as long as the longest of those."""


class MediaPace:
    """How fast a replica makes the media that callers play meanwhile; one for all its tasks."""

    def __init__(self) -> None:
        self.under_way = 0
        """Sounds and videos that are being made."""
        self._shares: deque[float] = deque(maxlen=REMEMBERED)

    def note(self, interval: float) -> None:
        """Note the seconds from one piece to the next of the same sound."""
        self._shares.append(interval / self.under_way)

    @property
    def longest_interval(self) -> float:
        """Seconds that the next piece may take, with as many under way as now; 0 while nothing is known."""
        return MARGIN * self.under_way * max(self._shares, default=0.0)


class PlayoutDelay:
    """The delay of one sound: where the next piece may take longer than the first one plays, it begins so much later.

    It is never longer than the first piece: what is made more slowly than that has a gap anyhow. A context: while it is
    open, the sound is being made.
    """

    def __init__(self, pace: MediaPace) -> None:
        self._pace = pace
        self._last: float | None = None

    def __enter__(self) -> Self:
        self._pace.under_way += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pace.under_way -= 1

    def of(self, seconds: float, now: float) -> float:
        """Seconds for which the first piece is held, which plays `seconds`; 0 for those behind it. `now` on any steady clock."""
        last, self._last = self._last, now
        if last is not None:
            self._pace.note(now - last)
            return 0.0
        return min(max(self._pace.longest_interval - seconds, 0.0), seconds)
