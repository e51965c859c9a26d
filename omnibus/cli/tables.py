"""Tables in the terminal, and the words for times and sizes in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

_WIDE = 10_000
_COLOURS = {"up": "green", "starting": "yellow", "draining": "yellow", "restarting": "red", "down": "red", "error": "red",
            "done": "green", "failed": "red", "cancelled": "yellow", "expired": "red"}  # fmt: skip


def make_table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> Table:
    """A table whose cells stay on one line; None is a dash, and states have colours."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="bold", pad_edge=False)
    for column in head:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def show(renderable: RenderableType) -> None:
    """Print it, as wide as it must be where that is no terminal: an id that is cut off is of no use."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(renderable)
        return
    wide = Console(width=_WIDE, highlight=False)
    with wide.capture() as captured:
        wide.print(renderable)
    click.echo("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()), nl=False)  # which flushes


def clock(seconds: float | None) -> str | None:
    """A moment (seconds since the epoch) by this machine's clock: the time of day, with the date when that is another."""
    if seconds is None:
        return None
    moment, today = datetime.fromtimestamp(seconds).astimezone(), datetime.now().astimezone().date()
    return moment.strftime("%H:%M:%S" if moment.date() == today else "%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _cell(value: Any) -> str:
    text = "-" if value is None else escape(" ".join(str(value).split()))
    colour = _COLOURS.get(text.partition(",")[0])
    return f"[{colour}]{text}[/]" if colour else text
