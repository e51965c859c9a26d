"""The waterfall of one request, from its record alone: when each of its stages waited, ran or failed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.envelope import StageTiming
from omnibus.wire.failed_attempt import Attempt


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a request's life, in seconds since it was accepted; a failed attempt is a moment."""

    stage: str
    what: str
    """waited, ran or failed."""
    start: float
    end: float


def spans_of(
    spec: PipelineSpec, created: float, timings: Iterable[StageTiming], attempts: Iterable[Attempt]
) -> list[Span]:
    """The waits and runs of a request's stages, and the attempts that failed, in the order of their beginnings.

    `created` is the request's acceptance, seconds since the epoch, as the times of its record.
    """
    found = []
    for timing in timings:
        name, queued = spec.stage_name(timing.stage_id), max(timing.queued - created, 0.0)
        waited, ran = timing.seconds
        found.append(Span(name, "waited", queued, queued + waited))
        found.append(Span(name, "ran", queued + waited, queued + waited + ran))
    for attempt in attempts:
        at = max(attempt.at - created, 0.0)
        found.append(Span(spec.stage_name(attempt.stage_id), "failed", at, at))
    return sorted(found, key=lambda span: (span.start, span.end))
