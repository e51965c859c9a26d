"""Many seeds, on all cores."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator
from functools import partial

from tests.simulation.world import Outcome, simulate

_CHUNK = 50


def sweep(seeds: range, *, hole: str | None = None) -> Iterator[Outcome]:
    """Outcomes that broke a promise, as they are found; stop iterating and the rest is not run."""
    chunks = [seeds[first : first + _CHUNK] for first in range(0, len(seeds), _CHUNK)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(os.cpu_count() or 1, len(chunks)), initializer=_settle_down) as pool:
        for failed in pool.imap(partial(_failures, hole=hole), chunks):
            yield from failed


def first_failure(seeds: range, *, hole: str | None = None) -> Outcome | None:
    """The first seed that breaks a promise, here and in order."""
    return next((outcome for seed in seeds if (outcome := simulate(seed, hole=hole)).violations), None)


def _failures(seeds: range, hole: str | None) -> list[Outcome]:
    return [outcome for seed in seeds if (outcome := simulate(seed, hole=hole)).violations]


def _settle_down() -> None:
    """Interleavings make little garbage and many objects: collecting seldom saves a third of the time."""
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
