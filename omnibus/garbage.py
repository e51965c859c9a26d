"""The garbage collector of a process that serves."""

from __future__ import annotations

import gc

_NEW, _ROUNDS, _FULL = 50_000, 20, 100
"""Objects made before a collection, and collections before one of the next generation."""


def settle_garbage() -> None:
    """Collect rarely from now on, and leave out what lives now: call it when a process has started.

    What a request leaves is freed by its reference counts; Python's own thresholds would go through everything that was ever
    imported again and again while many requests are under way.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW, _ROUNDS, _FULL)
