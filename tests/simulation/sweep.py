"""Many seeds, on all cores."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.simulation.world import Outcome, simulate

_CHUNK = 50
_CHUNKS_A_PROCESS = 10
"""Garbage of so many is left to the end of their process: collecting it takes a fifth of the time."""


def sweep(
    seeds: range, *, hole: str | None = None, hosted: bool = False, graph: str | None = None
) -> Iterator[Outcome]:
    """Outcomes that broke a promise, as they are found; stop iterating and the rest is not run."""
    chunks = [seeds[first : first + _CHUNK] for first in range(0, len(seeds), _CHUNK)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    workers = min(len(os.sched_getaffinity(0)), len(chunks))
    with context.Pool(workers, initializer=gc.disable, maxtasksperchild=_CHUNKS_A_PROCESS) as pool:
        for failed in pool.imap(partial(_failures, hole=hole, hosted=hosted, graph=graph), chunks):
            yield from failed


def first_failure(seeds: range, *, hole: str | None = None, hosted: bool = False) -> Outcome | None:
    """The first seed that breaks a promise, here and in order."""
    return next((outcome for seed in seeds if (outcome := simulate(seed, hole=hole, hosted=hosted)).violations), None)


def _failures(seeds: range, **world: Any) -> list[Outcome]:
    return [outcome for seed in seeds if (outcome := simulate(seed, **world)).violations]
