"""The table of docs/reference/benchmarks.md, made of the results of a run; the text around it is written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.plots import PLOTS
from bench.rows import ROWS, Row

PAGE = Path("docs") / "reference" / "benchmarks.md"
IMAGES = Path("docs") / "images"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def write(results: Mapping[str, Any], page: Path = PAGE) -> None:
    """Put the table of these results in the place of the one that stands there."""
    text = page.read_text()
    before, rest = text.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}")


def table(results: Mapping[str, Any]) -> str:
    """The machine, a row a figure, and the plots."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    where = (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']:g} GiB, Linux {machine['kernel']}, "
        f"Python {machine['python']}; {versions}. Size `{results['size']}`, {results['seconds']:.0f} s; "
        f"others kept {results['others_busy_cores']:g} cores busy."
    )
    head = ("| bench | figure | measured | spread | bound | |", "|---|---|---|---|---|---|")
    lines = [_line(row, results) for row in ROWS if row.bench in results["figures"]]
    images = [f"![{plot.title}](../images/{plot.file})" for plot in PLOTS if plot.bench in results["figures"]]
    return "\n".join(("", where, "", *head, *lines, "", *images))


def _line(row: Row, results: Mapping[str, Any]) -> str:
    value = results["figures"][row.bench].get(row.figure)
    if value is None:
        reason = results["missing"].get(row.bench, {}).get(row.figure, "not measured")
        outcome = "missed" if row.bound is not None else ""
        return f"| `{row.bench}` | {row.text} | – | {reason} | {row.bound_text} | {outcome} |"
    ends = results["spread"].get(row.bench, {}).get(row.figure)
    spread = f"{shown(ends[0])} – {shown(ends[1])}" if ends else ""
    outcome = "" if row.bound is None else "**missed**" if row.missed_by(value) else "reached"
    return f"| `{row.bench}` | {row.text} | {shown(value)}{row.unit} | {spread} | {row.bound_text} | {outcome} |"


def shown(value: float) -> str:
    """A figure in three digits, or whole from a hundred on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
