"""The frame of a bench: its sizes, its command line, its report, and the line of JSON in which it ends."""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.table import Table

from omnibus.observability.logging import configure_logging

SettingsT = TypeVar("SettingsT")
console = Console(stderr=True, highlight=False)


class Size(StrEnum):
    """How much of it is measured."""

    SMALLEST = "smallest"
    """In seconds: shows that everything works; the figures say little."""
    QUICK = "quick"
    """The part of a run of all benches that takes a few minutes."""
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The findings of a bench."""

    figures: Mapping[str, float]
    """Medians, where there are several rounds."""
    spread: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """The least and the greatest of the rounds."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Figures that could not be had, with the reason."""
    detail: Mapping[str, object] = field(default_factory=dict)
    """Explanations of the figures: CPU by process, spans, series for plots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench(Generic[SettingsT]):
    """One bench. Its settings are a frozen dataclass of numbers and texts; each is a flag too."""

    name: str
    summary: str
    sizes: Mapping[Size, SettingsT]
    measure: Callable[[SettingsT, Path], Report]
    """Gets a folder of its own."""

    def main(self, words: Sequence[str] | None = None) -> None:
        """Measure, print a table on stderr and one line of JSON on stdout."""
        given = vars(self._parser().parse_args(words))
        size = Size(given.pop("size"))
        settings = dataclasses.replace(  # type: ignore[type-var]
            self.sizes[size], **{name: value for name, value in given.items() if value is not None}
        )
        configure_logging("error", for_good=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="omnibus-bench-", ignore_cleanup_errors=True) as folder:
            report = self.measure(settings, Path(folder))
        _show(self.name, report)
        print(json.dumps(self._line(report, size, settings, time.monotonic() - started)))

    def _line(self, report: Report, size: Size, settings: Any, seconds: float) -> dict[str, object]:
        return {
            "bench": self.name,
            "size": size,
            "settings": dataclasses.asdict(settings),
            "seconds": round(seconds, 1),
            "figures": {name: _rounded(value) for name, value in report.figures.items()},
            "spread": {name: [_rounded(end) for end in ends] for name, ends in report.spread.items()},
            "missing": dict(report.missing),
            "detail": dict(report.detail),
        }

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=f"python -m bench.{self.name}", description=self.summary)
        parser.add_argument("--size", choices=list(Size), default=Size.FULL)
        for one in dataclasses.fields(self.sizes[Size.FULL]):  # type: ignore[arg-type]
            value = getattr(self.sizes[Size.FULL], one.name)
            flag = f"--{one.name.replace('_', '-')}"
            parser.add_argument(flag, type=type(value), help=f"{value} in a full run")
        return parser


def _show(name: str, report: Report) -> None:
    table = Table(title=name, title_justify="left")
    for column in ("figure", "median", "least", "greatest"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for figure, value in report.figures.items():
        ends = report.spread.get(figure)
        table.add_row(figure, _shown(value), *(map(_shown, ends) if ends else ("", "")))
    for figure, reason in report.missing.items():
        table.add_row(figure, "–", reason, "")
    console.print(table)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
