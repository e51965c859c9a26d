"""Links of pages as they are read in the repository: each leads to a file, and to a heading of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.snippets import ROOT

pytestmark = pytest.mark.unit

FOLDERS = {"": "*.md", "docs": "**/*.md", "examples": "*/*.md", "packages": "*/*.md"}
PAGES = [page for folder, pattern in FOLDERS.items() for page in sorted((ROOT / folder).glob(pattern))]
LINKS = [
    (page, link) for page in PAGES for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in link
]
LONGEST_README = 75
"""Lines: a screen and a half."""


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize(("page", "link"), LINKS, ids=[f"{page.name}-{link}" for page, link in LINKS])
def test_link_leads_somewhere(page: Path, link: str) -> None:
    file, _, anchor = link.partition("#")
    target = page.parent / file if file else page
    assert target.exists(), link
    assert not anchor or anchor in headings(target), f"{file} has no heading {anchor}"


def test_readme_is_a_screen_and_a_half_and_shows_the_two_commands_first() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= LONGEST_README
    first = next(index for index, line in enumerate(lines) if line.startswith("```"))
    assert [line.split("#")[0].strip() for line in lines[first + 1 : first + 3]] == ["make demo", "make test"]
    assert any("docs/images/pipeline.svg" in line for line in lines)
