"""Pipeline files: YAML to a valid PipelineSpec, or an error that names file, line and field."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path as FilePath
from typing import Any, get_args

import msgspec

from omnibus.errors import PipelineError
from omnibus.pipeline.route import Forwarding
from omnibus.pipeline.spec import EdgeSpec, EngineName, LaneName, LbPolicy, PayloadRule, PipelineSpec, StageSpec
from omnibus.pipeline.validation import Path, field_name, problems
from omnibus.pipeline.yaml_document import YamlDocument, parse_yaml

_PACKAGE = FilePath(__file__).parents[1]
_PRESET_FOLDERS = (_PACKAGE / "_data" / "pipelines", _PACKAGE.parent / "deploy" / "pipelines")
"""Inside an installed wheel, and beside the package in a source tree."""

_DURATION_FIELDS = ("deadline", "heartbeat_timeout")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_CHOICES: dict[str, tuple[str, ...]] = {
    "engine": get_args(EngineName),
    "lb_policy": get_args(LbPolicy),
    "lanes": get_args(LaneName),
    "forwarding": tuple(Forwarding),
    "payload": tuple(PayloadRule),
}


def load_pipeline(path_or_name: str | os.PathLike[str]) -> PipelineSpec:
    """Load a pipeline file, or a shipped preset by its name.

    A text with a folder separator or ending in .yaml or .yml is a path, anything else a name. Raises PipelineError.
    """
    text = os.fspath(path_or_name)
    is_path = isinstance(path_or_name, os.PathLike) or os.sep in text or text.endswith((".yaml", ".yml"))
    return _load_file(FilePath(text) if is_path else _preset(text))


def parse_pipeline(text: str, file: str = "<pipeline>") -> PipelineSpec:
    """The valid specification in a YAML text; `file` is what errors name. Raises PipelineError."""
    document = parse_yaml(text, file)
    if not isinstance(document.values, dict):
        raise document.error((), "a pipeline file is a mapping with name and stages")
    spec = _convert(document)
    problem = next(problems(spec), None)
    if problem is not None:
        raise document.error(problem.path, problem.message)
    return spec


def presets() -> dict[str, FilePath]:
    """The shipped pipelines: name → file, sorted."""
    folder = next((folder for folder in _PRESET_FOLDERS if folder.is_dir()), None)
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))} if folder else {}


def _preset(name: str) -> FilePath:
    known = presets()
    if name not in known:
        listed = ", ".join(known) or "none"
        raise PipelineError(f"no pipeline named {name!r} is shipped{_suggestion(name, known)}; shipped are {listed}")
    return known[name]


def _load_file(path: FilePath) -> PipelineSpec:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PipelineError("not a text file in UTF-8", file=str(path)) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PipelineError(f"cannot be read: {reason}", file=str(path)) from error
    return parse_pipeline(text, str(path))


def _convert(document: YamlDocument) -> PipelineSpec:
    values = dict(document.values)
    for field in _DURATION_FIELDS:
        if isinstance(values.get(field), str):
            values[field] = _seconds(document, field)
    try:
        return msgspec.convert(values, PipelineSpec)
    except msgspec.ValidationError as error:
        raise _explained(document, str(error)) from error


def _seconds(document: YamlDocument, field: str) -> float:
    text: str = document.values[field]
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h)\s*", text)
    if match is None:
        raise document.error((field,), f"{text!r} is not a duration; write seconds, or such as 500ms, 30s, 5m, 1h")
    return float(match[1]) * _SECONDS[match[2]]


def _explained(document: YamlDocument, message: str) -> PipelineError:
    """msgspec's message, such as "Expected `int`, got `str` - at `$.stages[1].slots`", with file, line and field."""
    what, _, where = message.partition(" - at ")
    path = _path(where)
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", what):
        return document.error((*path, unknown[1]), f"unknown field{_suggestion(unknown[1], _fields_at(path))}")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", what):
        line = document.line(path)
        return PipelineError("missing", file=document.file, line=line, field=field_name((*path, missing[1])))
    path = _entry_that_is_not_text(document, path) if where.endswith("[...]`") else path
    if what.startswith("Invalid enum value"):
        return document.error(path, _not_a_choice(document, path))
    hint = "; quote it" if what.startswith("Expected `str") else ""
    return document.error(path, what[:1].lower() + what[1:].replace("`", "") + hint)


def _path(where: str) -> Path:
    """("stages", 1, "slots") for "`$.stages[1].slots`"."""
    parts = re.findall(r"\.(\w+)|\[(\d+)\]", where)
    return tuple(name or int(index) for name, index in parts)


def _fields_at(path: Path) -> tuple[str, ...]:
    if not path:
        return PipelineSpec.__struct_fields__
    return StageSpec.__struct_fields__ if path[0] == "stages" else EdgeSpec.__struct_fields__


def _entry_that_is_not_text(document: YamlDocument, path: Path) -> Path:
    """msgspec does not say which entry of a dict is wrong; here only `env` constrains its values, to text."""
    entries = _value_at(document, path)
    return next(((*path, key) for key, value in entries.items() if not isinstance(value, str)), path)


def _not_a_choice(document: YamlDocument, path: Path) -> str:
    value = _value_at(document, path)
    field = next(str(part) for part in reversed(path) if isinstance(part, str))
    choices = _CHOICES[field]
    return f"{value!r} is not one of {', '.join(choices)}{_suggestion(value, choices)}"


def _value_at(document: YamlDocument, path: Path) -> Any:
    value = document.values
    for part in path:
        value = value[part]
    return value


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
