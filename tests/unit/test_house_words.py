"""The words of this house: how docstrings begin, which words are avoided, and that a base name means one thing."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import omnibus

pytestmark = pytest.mark.unit

ROOT = Path(omnibus.__file__).parents[1]
PACKAGE = sorted((ROOT / "omnibus").rglob("*.py"))
SOURCES = [*PACKAGE, *sorted((ROOT / "tools").rglob("*.py")), *sorted((ROOT / "bench").rglob("*.py"))]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(
        file
        for folder in ("docs", "nats", "deploy", "examples")
        for file in sorted((ROOT / folder).rglob("*"))
        if file.suffix in {".md", ".conf", ".yaml", ".mjs"} and "node_modules" not in file.parts
    ),
]

NO_SUBJECT = {"What", "Who", "Whoever", "Whose", "Whatever", "Of"}
"""First words of a sentence that names no subject."""

PRIVATE = {
    r"home[- ]?com\w*|(?:bring|brought|come|comes|came|sent?|send) home|home lane": "reroute, shared queue",
    r"resurrect\w*|leftovers?": "orphan cleanup",
    r"journal\w*": "telemetry, or a log beside the act",
    r"(?<!dead )(?<!dead-)letters?": "dead letter",
    r"judg\w+|verdicts?|condemn\w*|testif\w*|witness\w*": "failure detector, mark down, report",
    r"obey\w*": "reconcile, follow",
    r"(?:what|be|was|were|is|has|had|have) (?:been )?(?:said|heard)|saying": "sent text, replay; received, resume",
    r"lets? go|look(?:s|ed)? again|reviv\w+": "release, re-check, redrive",
    r"surplus|(?:gives?|given|gave|giving|hands?|handed|handing) back": "excess delivery, requeue, return",
    r"patience": "timeout",
    r"narrator|outbox|farewells?|wish(?:es)?": "output adapter, output queue, shutdown hook, arguments",
    r"told": "notified, known, shown",
    r"crowded": "has_last_attempt",
    r"papers": "documentation",
    r"whoever|whomever": "the noun that is meant",
}
"""Words that only this project would use in such a sense, and the words that people search for."""

ALLOWED = {
    "nats/accounts.conf": {"letters", "letter"},  # of the alphabet
}

SHARED_FILES = {
    "__init__.py": "every package has one",
    "__main__.py": "what `python -m` runs",
    "engine.py": "the engine of each folder in workers/engines/",
}


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


def docstrings(file: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring, those of attributes too."""
    for node in ast.walk(ast.parse(file.read_text())):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield statement.lineno, text


def homonyms(names: Iterator[tuple[str, Path]], shared: dict[str, str]) -> dict[str, list[str]]:
    """Names that stand in several places, without those of `shared`."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, file in names:
        places[name].append(relative(file))
    return {name: found for name, found in places.items() if len(found) > 1 and name not in shared}


def classes() -> Iterator[tuple[str, Path]]:
    for file in PACKAGE:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                yield node.name, file


def test_docstring_names_its_subject_when_it_begins() -> None:
    wrong = [
        f"{relative(file)}:{line}: {text.splitlines()[0]}"
        for file in SOURCES
        for line, text in docstrings(file)
        if (first := re.match(r"\W*(\w+)", text)) and first[1] in NO_SUBJECT
    ]
    assert not wrong, "\n".join(wrong)


def test_words_are_those_that_people_search_for() -> None:
    wrong = [
        f"{relative(file)}:{number}: {found[0]!r}; better: {better}"
        for file in (*SOURCES, *PAGES)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        for private, better in PRIVATE.items()
        for found in re.finditer(rf"\b(?:{private})\b", line, re.IGNORECASE)
        if found[0] not in ALLOWED.get(relative(file), ())
    ]
    assert not wrong, "\n".join(wrong)


def test_base_name_of_a_file_means_one_thing() -> None:
    assert homonyms(((file.name, file) for file in PACKAGE), SHARED_FILES) == {}


def test_base_name_of_a_class_means_one_thing() -> None:
    assert homonyms(classes(), {}) == {}
