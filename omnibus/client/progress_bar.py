"""A progress bar over a batch, on stderr."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn


class Bar(Progress):
    """Counts prompts; a context manager. Shown on a terminal only."""

    def __init__(self, total: int, *, visible: bool, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        super().__init__(
            "{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            console=console, disable=not (visible and console.is_terminal),
        )  # fmt: skip
        self._row, self._failed = self.add_task("prompts", total=total), 0

    def count(self, *, failed: bool = False) -> None:
        """One more prompt is done with."""
        self._failed += failed
        description = f"prompts ({self._failed} failed)" if self._failed else "prompts"
        self.update(self._row, advance=1, description=description)
