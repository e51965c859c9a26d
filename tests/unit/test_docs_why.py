"""The page of costs says what the benches have measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

DOCS = Path(__file__).parents[2] / "docs"
MEASURED = DOCS / "reference" / "benchmarks.md"
FIGURE = re.compile(r"\d+(?:\.\d+)?(?:×| ms| GB/s)")


def test_figures_are_those_of_the_benches() -> None:
    """Those of power loss and elections are of the guarantees; all others stand in the table of `make bench`."""
    page = (DOCS / "why.md").read_text()
    stated = set(FIGURE.findall(page))
    assert len(stated) > 15
    assert stated <= set(FIGURE.findall(MEASURED.read_text())), "run `make bench`? Then docs/why.md needs its figures"
