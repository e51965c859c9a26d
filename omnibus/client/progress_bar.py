"""A progress bar over a batch, on stderr."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """Counts prompts; a context manager. Shown on a terminal only."""

    def __init__(self, total: int, *, visible: bool, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (visible and console.is_terminal),
        )
        self._row = self._progress.add_task("prompts", total=total)
        self._failed = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, *, failed: bool = False) -> None:
        """One more prompt is done with."""
        self._failed += failed
        description = f"prompts ({self._failed} failed)" if self._failed else "prompts"
        self._progress.update(self._row, advance=1, description=description)
