"""How long the tasks of each stage waited and ran lately, from the records of the requests that ended last."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from omnibus.requests.record import Record
from omnibus.wire.envelope import StageTiming

SAMPLE = 128
"""Requests that are looked at."""


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Medians, in seconds."""

    waited: float
    ran: float


def stage_times(records: Iterable[Record]) -> Mapping[int, StageTimes]:
    """The times of each stage that ran in any of these requests, by stage id. Pure."""
    known: defaultdict[int, list[StageTiming]] = defaultdict(list)
    for record in records:
        for timing in record.timings:
            known[timing.stage_id].append(timing)
    return {stage_id: _medians(timings) for stage_id, timings in known.items()}


def _medians(timings: list[StageTiming]) -> StageTimes:
    waited, ran = zip(*(timing.seconds for timing in timings), strict=True)
    return StageTimes(median(waited), median(ran))
