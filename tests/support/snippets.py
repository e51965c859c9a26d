"""Blocks of code on the pages of the documentation, and the command lines in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
    *sorted((ROOT / "packages").glob("*/README.md")),
]
_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_HEREDOC = re.compile(r"<<'?(\w+)'?\n.*?^\1$", re.MULTILINE | re.DOTALL)
_JOINTS = {";", "&&", "||", "|", "&"}

Key = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class Snippet:
    """A fenced block."""

    page: str
    """Its page, from the root of the repository."""
    line: int
    """The line of its fence."""
    language: str
    text: str

    @property
    def first(self) -> str:
        """The first line that is no comment."""
        lines = [line.strip() for line in self.text.splitlines()]
        return next((line for line in lines if line and not line.startswith("#")), "")

    def entry(self, table: Mapping[Key, str]) -> Key | None:
        """The key under which a table has it: its page, or its page and how its first line begins."""
        found = (
            key for key in table if isinstance(key, tuple) and self.page == key[0] and self.first.startswith(key[1])
        )
        return next(found, self.page if self.page in table else None)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def snippets() -> Iterator[Snippet]:
    """Every block of every page, in order."""
    for page in PAGES:
        text = page.read_text()
        for found in _BLOCK.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            yield Snippet(str(page.relative_to(ROOT)), line, found["language"], found["text"])


def script_of(snippet: Snippet) -> str:
    """A block of shell as the shell gets it; of a console, what was typed."""
    if snippet.language != "console":
        return snippet.text
    return "\n".join(line[2:] for line in snippet.text.splitlines() if line.startswith("$ "))


def commands_of(snippet: Snippet) -> Iterator[list[str]]:
    """The words of each simple command; what stands in a here-document is none."""
    script = _HEREDOC.sub("", script_of(snippet)).replace("\\\n", " ")
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in lexer:
            if word in _JOINTS:
                yield from [words] if words else []
                words = []
            else:
                words.append(word)
        yield from [words] if words else []


def shown_of(snippet: Snippet) -> Iterator[tuple[str, str]]:
    """Of a console, each command and what it shows."""
    yield from re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", snippet.text, re.MULTILINE)
