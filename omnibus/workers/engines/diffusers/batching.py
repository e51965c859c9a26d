"""The choice of the requests that share a batch: like the oldest, in their order, as many as the budget allows. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One request that waits."""

    key: object
    """Equal for requests that may share a batch."""
    bundle: str
    """Members of one bundle, which follow each other, are not parted."""
    rows: int = 1
    pixels: int = 0
    """Pixels of one row, the same for equal keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A choice."""

    members: tuple[int, ...]
    """Places in the queue, in its order."""
    is_full: bool
    """Whether no request that arrives now could join."""


def choose(waiting: Sequence[Waiting], *, slots: int, budget: int | None) -> Batch:
    """The oldest request and those after it that are like it, while their rows fit.

    Without a budget as many rows as there are slots; with one, as many as have that many pixels together: more small pictures
    than large ones. One that does not fit ends the batch, as a later one must not pass it.
    """
    if not waiting:
        return Batch(members=(), is_full=False)
    first, members, rows = waiting[0], list[int](), 0
    most = rows_a_call(first.pixels, budget) or slots
    for place, one in enumerate(waiting):
        if one.key != first.key:
            continue
        if members and one.bundle != waiting[members[-1]].bundle and rows + one.rows > most:
            return Batch(members=tuple(members), is_full=True)
        members.append(place)
        rows += one.rows
    return Batch(members=tuple(members), is_full=rows >= most or len(waiting) >= slots)


def rows_a_call(pixels: int, budget: int | None) -> int | None:
    """Rows of so many pixels that fit into the budget, one at least; None without a budget."""
    return None if budget is None else max(1, budget // max(1, pixels))
