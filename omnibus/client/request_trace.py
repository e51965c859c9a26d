"""The waterfall of one request: when each of its stages waited, ran or failed, and which waits or runs now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from omnibus.client.request_position import StagePosition
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.envelope import StageTiming
from omnibus.wire.failed_attempt import Attempt


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a request's life, in seconds since it was accepted; a failed attempt is a moment."""

    stage: str
    what: str
    """waited, ran or failed; of a stage that the request is at now waiting, or running, from when its task was queued."""
    start: float
    end: float


def spans_of(
    spec: PipelineSpec, created: float, timings: Iterable[StageTiming], attempts: Iterable[Attempt],
    at: Iterable[StagePosition] = (), *, now: float = 0.0,
) -> list[Span]:  # fmt: skip
    """The waits and runs of a request's stages, and the attempts that failed, in the order of their beginnings.

    `created` is the request's acceptance, seconds since the epoch, as the times of its record. `timings` may name a stage
    twice: the later one counts. `at` are the stages where an open request is at `now`.
    """
    found = []
    for timing in {one.stage_id: one for one in timings}.values():
        name, queued = spec.stage_name(timing.stage_id), max(timing.queued - created, 0.0)
        waited, ran = timing.seconds
        found.append(Span(name, "waited", queued, queued + waited))
        found.append(Span(name, "ran", queued + waited, queued + waited + ran))
    for attempt in attempts:
        moment = max(attempt.at - created, 0.0)
        found.append(Span(spec.stage_name(attempt.stage_id), "failed", moment, moment))
    for one in at:
        begun = max(one.queued - created, 0.0)
        what = "waiting" if one.replica is None else "running"
        found.append(Span(spec.stage_name(one.stage_id), what, begun, max(now - created, begun)))
    return sorted(found, key=lambda span: (span.start, span.end))
