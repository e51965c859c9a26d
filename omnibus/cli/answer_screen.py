"""A terminal on which text streams while a progress bar stands below it."""

from __future__ import annotations

import os
import sys

from rich.cells import chop_cells
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

_CLEAR_LINE = "\r\x1b[K"


class AnswerScreen:
    """Text goes to stdout, bars and messages to stderr. Where one terminal shows both, the open line is drawn with the bars."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._is_shared = sys.stdout.isatty() and sys.stderr.isatty()
        self._in_one_file = self._is_shared or _are_one_file()
        self._console = Console(stderr=not self._is_shared, highlight=False)
        self._bars = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._rows: dict[str, TaskID] = {}
        self._live: Live | None = None
        self._open: list[str] = []
        """The last line of the text, in pieces: of one that grows long, none is copied for the next."""
        self._waiting: list[str] = []
        """Messages that would break that line."""

    def write(self, text: str) -> None:
        """The next piece of the text."""
        if self._quiet or not text:
            return
        if self._live is None or not self._is_shared:
            sys.stdout.write(text)
            sys.stdout.flush()
            _, line_end, piece = text.rpartition("\n")
            self._keep(piece, begun=bool(line_end))
            return
        *complete, row = _rows(self._open_line + text, self._console.width)
        self._keep(row, begun=True)
        for row in complete:
            self._live.console.print(Text(row))
        self._draw()

    def progress(self, name: str, step: int, total: int) -> None:
        """How far something is; shown on a terminal only."""
        if self._quiet or not self._console.is_terminal:
            return
        if name not in self._rows:
            self._rows[name] = self._bars.add_task(name, total=total)
        self._bars.update(self._rows[name], completed=step)
        self._draw()

    def say(self, line: str) -> None:
        """A message on a line of its own; where text and messages meet, not before the text has come to the end of its line."""
        if self._quiet:
            return
        if self._in_one_file and self._live is None and self._open:
            self._waiting.append(line)
        else:
            self._console.print(line, markup=False, soft_wrap=True)

    def end_line(self) -> None:
        """Begin a new line, unless one was just begun."""
        if self._open:
            self.write("\n")
        waiting, self._waiting = self._waiting, []
        for line in waiting:
            self.say(line)

    def close(self) -> None:
        """Take the bars away, and end the line."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()
            if self._is_shared:
                rest = self._open_line
                self._open.clear()
                self.write(rest)
        self.end_line()

    def _draw(self) -> None:
        if self._live is None:
            self._live = Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            if self._open and self._is_shared:
                self._keep(_rows(self._open_line, self._console.width)[-1], begun=True)
                sys.stdout.write(_CLEAR_LINE)
                sys.stdout.flush()
            self._live.start()
        text = [Text(self._open_line)] if self._is_shared and self._open else []
        self._live.update(Group(*text, self._bars), refresh=True)

    @property
    def _open_line(self) -> str:
        return "".join(self._open)

    def _keep(self, piece: str, *, begun: bool) -> None:
        """Add a piece to the open line, or begin another with it."""
        if begun:
            self._open.clear()
        if piece:
            self._open.append(piece)


def _are_one_file() -> bool:
    """Whether both streams end in one file or pipe, as with `2>&1`."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or no files at all
        return False


def _rows(text: str, width: int) -> list[str]:
    """The rows that a terminal makes of a text; the last one is open."""
    return [row for line in text.split("\n") for row in (chop_cells(line, width) or [""])]
