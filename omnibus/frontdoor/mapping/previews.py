"""Which of a painting's previews a caller gets: as many as were asked for, spread evenly over the steps."""

from __future__ import annotations


class Previews:
    """Counts previews out."""

    def __init__(self, wanted: int) -> None:
        self._wanted, self._sent = wanted, 0

    def take(self, step: int, total: int) -> int | None:
        """The index of the preview at this step when it is due, else None. Steps count from 1."""
        due = (self._sent + 1) * total / (self._wanted + 1)
        if self._sent >= self._wanted or step < due:
            return None
        self._sent += 1
        return self._sent - 1
