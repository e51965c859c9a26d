"""The page of parity names tests and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "reference" / "parity.md").read_text()
SOURCES = {str(file.relative_to(TESTS)): file.read_text() for file in TESTS.rglob("test_*.py")}
FILES = sorted(set(re.findall(r"`(\w+/\w+\.py)", PAGE)))
NAMES = sorted(set(re.findall(r"(?:`|::)(test_\w+)`", PAGE)))


@pytest.mark.parametrize("file", FILES)
def test_file_exists_when_a_row_names_it(file: str) -> None:
    assert file in SOURCES


@pytest.mark.parametrize("name", NAMES)
def test_test_exists_when_a_row_names_it(name: str) -> None:
    assert any(re.search(rf"def {name}\(", source) for source in SOURCES.values())


def test_every_row_names_a_test_or_says_that_there_is_nothing_to_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.endswith("| test |")]
    proven = [row for row in rows if "test_" in row or row.endswith(("| – |", "| the same tests |"))]
    assert proven == rows
    assert len(rows) > 60
