"""Rounds of several systems, interleaved, and the medians and the spread over them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import median

Sample = Mapping[str, float]
"""Figures of one round, by name."""
Measure = Callable[[], Awaitable[Sample]]
"""One round of one system."""


async def interleaved(
    systems: Mapping[str, Measure], rounds: int, say: Callable[[str], None] = lambda _line: None
) -> list[dict[str, Sample]]:
    """Measure every system once a round; each second round in the reverse order, so that a drift favours none."""
    done = []
    for number in range(rounds):
        names = list(systems) if number % 2 == 0 else list(reversed(systems))
        got = {name: await systems[name]() for name in names}
        for name in systems:
            figures = ", ".join(f"{figure} {value:.3g}" for figure, value in got[name].items())
            say(f"round {number + 1} of {rounds}, {name}: {figures}")
        done.append(got)
    return done


def flat(round_: Mapping[str, Sample]) -> dict[str, float]:
    """The figures of one round as `system.figure`."""
    return {f"{name}.{figure}": value for name, got in round_.items() for figure, value in got.items()}


def beside(round_: Mapping[str, Sample], system: str, peer: str, *figures: str) -> dict[str, float]:
    """Figures of a system divided by the same of a peer in the same round, as `system.figure_beside_peer`."""
    return {f"{system}.{figure}_beside_{peer}": round_[system][figure] / round_[peer][figure] for figure in figures}


def medians(samples: Sequence[Sample]) -> dict[str, float]:
    """The median of each figure over the rounds."""
    return {name: median(sample[name] for sample in samples) for name in samples[0]}


def spreads(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """The least and the greatest of each figure."""
    return {
        name: (min(sample[name] for sample in samples), max(sample[name] for sample in samples)) for name in samples[0]
    }
