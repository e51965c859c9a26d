"""Whether a sound or video begins with its second piece, so that no player runs dry behind the first. Pure."""

from __future__ import annotations

from collections import deque
from statistics import median
from types import TracebackType
from typing import Protocol, Self

REMEMBERED = 16
"""Intervals between pieces that count."""
MARGIN = 1.5
"""The next piece may take so many times as long as they usually do."""
MOST = 2.0
"""The first piece is held at most so many times as long as it plays: what is made more slowly has a gap anyhow."""
LONGEST = 0.5
"""Seconds that nothing is held beyond, however long the pieces are: a caller waits for them."""


class Media(Protocol):
    """A sound or video, piece by piece."""

    @property
    def seconds(self) -> float:
        """Seconds that the last piece plays."""


class MediaPace:
    """How fast a replica makes the media that callers play meanwhile; one for all its tasks."""

    def __init__(self) -> None:
        self.under_way = 0
        """Sounds and videos that are being made."""
        self._intervals: deque[float] = deque(maxlen=REMEMBERED)

    def note(self, interval: float) -> None:
        """Note the seconds from one piece to the next of the same sound."""
        self._intervals.append(interval)

    def may_run_dry(self, seconds: float) -> bool:
        """Whether a piece may come when one of so many seconds has played: others are made beside it, or all are slow."""
        return self.under_way > 1 or (bool(self._intervals) and MARGIN * median(self._intervals) > seconds)


class PlayoutDelay:
    """The delay of one sound or video. A context: while it is open, that is being made."""

    def __init__(self, pace: MediaPace, media: Media) -> None:
        self._pace, self._media = pace, media
        self._last: float | None = None

    def __enter__(self) -> Self:
        self._pace.under_way += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pace.under_way -= 1

    def of_piece(self, now: float) -> float:
        """Seconds for which the piece just made may wait for the next one; 0 for all but the first. `now`: any steady clock."""
        last, self._last = self._last, now
        if last is not None:
            self._pace.note(now - last)
            return 0.0
        seconds = self._media.seconds
        return min(MOST * seconds, LONGEST) if self._pace.may_run_dry(seconds) else 0.0
