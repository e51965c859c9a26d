"""Command lines of vLLM-Omni rewritten by the table of docs/guide/migrate.md."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from omnibus.pipeline.spec import StageSpec

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "migrate.md"
SWITCHES = {
    "--omni",
    "--headless",
    "--log-stats",
    "--enforce-eager",
    "--async-chunk",
    "--no-async-chunk",
    "--trust-remote-code",
}
"""Flags of theirs without a value."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: flags with the placeholders of their values, and what takes their place."""

    theirs: tuple[str, ...]
    serve: tuple[str, ...]
    worker: tuple[str, ...]
    reason: str

    @property
    def flags(self) -> dict[str, str | None]:
        """Placeholder by flag, None for a switch."""
        return given_flags(self.theirs)


def rows(guide: str | None = None) -> list[Row]:
    """The rows of "Flag by flag"."""
    text = GUIDE.read_text() if guide is None else guide
    section = text.partition("## Flag by flag")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `--")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [Row(_words(first), _words(second), _words(third), last) for first, second, third, last in cells]


def scenarios(guide: str | None = None) -> list[tuple[list[str], list[str]]]:
    """Command lines of theirs, and those of ours that follow them, of each scenario."""
    text = GUIDE.read_text() if guide is None else guide
    blocks = [block.strip().splitlines() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
    return [(theirs, ours) for theirs, ours in itertools.pairwise(blocks) if theirs[0].startswith("vllm ")]


def translate(theirs: str, table: Sequence[Row]) -> list[str]:
    """`vllm serve MODEL --omni …` as the words of one command of ours; KeyError for a flag that the table lacks."""
    program, verb, model, *words = shlex.split(theirs)
    assert (program, verb) == ("vllm", "serve")
    given = given_flags(words)
    unknown = given.keys() - {flag for row in table for flag in row.flags}
    if unknown:
        raise KeyError(*sorted(unknown))
    file = given.get("--deploy-config") or f"{PurePath(model).name.lower()}.yaml"
    command = ["omnibus", "serve", file]
    if "--headless" in given:
        command = ["omnibus", "worker", "--pipeline", PurePath(file).stem]
    for row in sorted((row for row in table if row.flags.keys() <= given.keys()), key=lambda row: _place(row, given)):
        if "--deploy-config" not in row.flags:
            command += _filled(row.worker if "--headless" in given else row.serve, row, given)
    return command


def given_flags(words: Sequence[str]) -> dict[str, str | None]:
    """Value by flag, in order."""
    given: dict[str, str | None] = {}
    rest = iter(words)
    for flag in rest:
        given[flag] = None if flag in SWITCHES else next(rest)
    return given


def nested_overrides(flat: str) -> str:
    """Their JSON of `--stage-overrides` in our shape: what is no field of a stage is for its engine."""
    fields = StageSpec.__struct_fields__
    stages = {}
    for stage, values in json.loads(flat).items():
        own = {name: value for name, value in values.items() if name in fields}
        engine = {name: value for name, value in values.items() if name not in fields}
        stages[stage] = {**own, **({"engine_args": engine} if engine else {})}
    return json.dumps(stages)


def _filled(template: Sequence[str], row: Row, given: Mapping[str, str | None]) -> list[str]:
    words = list(template)
    for flag, placeholder in row.flags.items():
        value = given[flag]
        if placeholder is None or value is None:
            continue
        value = nested_overrides(value) if flag == "--stage-overrides" else value
        words = [word if word.startswith("--") else word.replace(placeholder, value) for word in words]
    return words


def _place(row: Row, given: Mapping[str, str | None]) -> int:
    return min(list(given).index(flag) for flag in row.flags)


def _words(cell: str) -> tuple[str, ...]:
    return () if cell == "–" else tuple(cell.strip("`").split())
