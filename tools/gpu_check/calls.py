"""The calls that painters have recorded, a file a process, and the time between them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

FOLDER = "GPU_CHECK_RECORDS"
"""The variable with the folder in which a painter writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a pipeline: a batch. Seconds of the monotonic clock."""

    process: str
    began: float
    ended: float
    images: int


def recorded(folder: Path, since: float = 0.0) -> list[Call]:
    """The calls that began at a moment or later, in their order."""
    lines = [(file.stem, json.loads(line)) for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    calls = [Call(process=process, **line) for process, line in lines]
    return sorted((call for call in calls if call.began >= since), key=lambda call: call.began)


def gaps(calls: list[Call]) -> dict[str, float | None]:
    """Milliseconds between the batches of one process, and the share of the time in which it ran one."""
    between = [1000 * (later.began - earlier.ended) for earlier, later in pairwise(calls)]
    whole, busy = calls[-1].ended - calls[0].began, sum(call.ended - call.began for call in calls)
    return {
        "gap_ms_median": round(median(between), 2) if between else None,
        "gap_ms_most": round(max(between), 2) if between else None,
        "busy_share": round(busy / whole, 4),
    }
