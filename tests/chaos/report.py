"""The table, a row a nemesis, and the totals as one line of JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from tests.chaos.checker import Verdict
from tests.chaos.failover import quantile
from tests.chaos.scenario import Outcome

_COLUMNS = (
    ("nemesis", 18), ("on", 9), ("accepted", 8), ("done", 6), ("failed", 6), ("lost", 4), ("dup", 4), ("breaks", 6),
    ("left", 4), ("failover p50/p99/max ms", 23), ("n", 4), ("pause ms", 8), ("s", 5), ("", 9),
)  # fmt: skip


def heading() -> str:
    return _line([name for name, _ in _COLUMNS])


def row(outcome: Outcome) -> str:
    """One line, and a line more for each of the first complaints."""
    verdict, nemesis = outcome.verdict, outcome.nemesis
    times = verdict.failovers
    spread = "/".join(
        f"{1000 * value:.0f}" for value in (quantile(times, 0.5), quantile(times, 0.99), max(times, default=0.0))
    )
    cells = [
        nemesis.name, nemesis.arena, verdict.accepted, verdict.done, verdict.failed, verdict.lost, verdict.duplicated,
        verdict.stream_breaks, verdict.left_behind, spread if times else "-", len(times), f"{1000 * outcome.pause:.0f}",
        f"{outcome.seconds:.0f}", "" if outcome.clean else "NOT CLEAN",
    ]  # fmt: skip
    return "\n".join([_line([str(cell) for cell in cells]), *(f"    {what}" for what in outcome.complaints[:8])])


def totals(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Sums over all rows; failovers are those of killed replicas."""
    times = [value for outcome in outcomes if outcome.nemesis.timed for value in outcome.verdict.failovers]
    return sums([outcome.verdict for outcome in outcomes], times)


def sums(verdicts: Sequence[Verdict], failovers: Sequence[float]) -> dict[str, float]:
    """Sum the rows up for the line of JSON."""
    counts = ("accepted", "done", "failed", "lost", "duplicated", "stream_breaks", "left_behind")
    return {
        **{name: sum(getattr(verdict, name) for verdict in verdicts) for name in counts},
        "failover_p50_ms": round(1000 * quantile(failovers, 0.5), 1),
        "failover_p99_ms": round(1000 * quantile(failovers, 0.99), 1),
    }


def json_line(numbers: Mapping[str, object]) -> str:
    return msgspec.json.encode(numbers).decode()


def _line(cells: Sequence[str]) -> str:
    widths = [width for _, width in _COLUMNS]
    return "  ".join(
        cell.ljust(width) if index < 2 or index == len(widths) - 1 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()
