"""When there is room again for whoever was refused: an estimate from what must end and how fast requests end. Pure."""

from __future__ import annotations

from collections import deque

from omnibus.pipeline.routing import plan_route
from omnibus.pipeline.spec import OVERFLOW_LANE, PipelineSpec
from omnibus.requests.advance import needs_event

SHORTEST, LONGEST = 1.0, 60.0
"""Seconds that anybody is asked to wait."""
WINDOW = 10.0
"""Seconds that a pace looks back."""
_APART = 0.25


def retry_after(must_end: int, pace: float | None) -> float:
    """Seconds until `must_end` requests have ended at `pace`, ends a second, from SHORTEST to LONGEST.

    Nobody knows who else waits for the same room: it is the time until there is some, and no reservation. SHORTEST while
    the pace is not known (None).
    """
    if pace is None:
        return SHORTEST
    return min(max(must_end / pace, SHORTEST), LONGEST) if pace > 0 else LONGEST


def bound(spec: PipelineSpec, lane: str) -> int:
    """Open requests at which one more for this lane is refused: the last tenth of room is for tenants within their share."""
    reserved = spec.max_open_requests // 10 if lane == OVERFLOW_LANE else 0
    return spec.max_open_requests - reserved


def messages_a_request(spec: PipelineSpec) -> int:
    """Messages that the queue stores for a request that needs every stage: its timer, tasks, and events."""
    route = plan_route(spec, None)
    return 1 + sum(1 + needs_event(route, stage.stage_id) for stage in route.stages)


class Pace:
    """How fast a count grows, over the last WINDOW seconds. Times are of a monotonic clock."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def mark(self, now: float, count: int) -> None:
        """The count stands here now; marks are kept some way apart, so that memory is bounded."""
        self._forget(now)
        if len(self._marks) > 1 and now - self._marks[-2][0] < _APART:
            self._marks.pop()
        self._marks.append((now, count))

    def a_second(self, now: float) -> float | None:
        """Growth a second, up to now; None while it was not watched for long enough to tell."""
        self._forget(now)
        if not self._marks or now - self._marks[0][0] < _APART:
            return None
        (since, first), (_, last) = self._marks[0], self._marks[-1]
        return (last - first) / (now - since)

    def _forget(self, now: float) -> None:
        while self._marks and self._marks[0][0] < now - WINDOW:
            self._marks.popleft()
