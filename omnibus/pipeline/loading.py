"""Pipeline files: YAML to a valid PipelineSpec, or an error that names file, line and field."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from typing import Any, get_args

import msgspec

from omnibus.errors import PipelineError
from omnibus.pipeline.files import pipeline_file, presets, read_file, suggestion
from omnibus.pipeline.inheritance import parse_merged
from omnibus.pipeline.plain_values import Path, field_name, shown
from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.pipeline.route import EdgeMode, Forwarding
from omnibus.pipeline.spec import EdgeSpec, LaneName, PayloadRule, PipelineSpec, StageSpec
from omnibus.pipeline.validation import problems
from omnibus.pipeline.yaml_document import YamlDocument

__all__ = ["build_pipeline", "load_document", "load_pipeline", "parse_pipeline", "presets"]

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_CHOICES: dict[str, tuple[str, ...]] = {
    "lb_policy": tuple(LoadBalancingPolicy),
    "lanes": get_args(LaneName),
    "forwarding": tuple(Forwarding),
    "payload": tuple(PayloadRule),
    "mode": tuple(EdgeMode),
}


def load_pipeline(path_or_name: str | os.PathLike[str], platform: str | None = None) -> PipelineSpec:
    """Load a pipeline file, or a shipped preset by its name, with its bases and its overlay for `platform`.

    A text with a folder separator or ending in .yaml or .yml is a path, anything else a name. `platform` None is the one of
    this machine. Raises PipelineError.
    """
    return build_pipeline(load_document(path_or_name, platform))


def load_document(path_or_name: str | os.PathLike[str], platform: str | None = None) -> YamlDocument:
    """Read a pipeline file as `load_pipeline` does, without converting it; its errors have their places."""
    path = pipeline_file(path_or_name)
    return parse_merged(read_file(path), str(path), platform)


def parse_pipeline(text: str, file: str = "<pipeline>", platform: str | None = None) -> PipelineSpec:
    """Parse a YAML text into a valid specification; errors name `file`, and bases are beside it. Raises PipelineError."""
    return build_pipeline(parse_merged(text, file, platform))


def build_pipeline(document: YamlDocument) -> PipelineSpec:
    """Convert a document to a valid specification; raises PipelineError naming the place."""
    spec = _convert(document)
    problem = next(problems(spec), None)
    if problem is not None:
        raise document.error(problem.path, problem.message)
    return spec


def _convert(document: YamlDocument) -> PipelineSpec:
    values = copy.deepcopy(document.values)
    for path, mapping, fields in _durations(values):
        for field in fields:
            if isinstance(mapping.get(field), str):
                mapping[field] = _seconds(document, (*path, field), mapping[field])
    try:
        return msgspec.convert(values, PipelineSpec)
    except msgspec.ValidationError as error:
        raise _explained(document, str(error)) from error


def _durations(values: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any], tuple[str, ...]]]:
    """Places, mappings and their fields that are durations; the values may be of any shape yet."""
    yield (), values, ("deadline", "heartbeat_timeout", "input_timeout")
    stages = values.get("stages")
    for index, stage in enumerate(stages if isinstance(stages, list) else ()):
        if isinstance(stage, dict):
            yield ("stages", index), stage, ("timeout", "stall_timeout")
            if isinstance(stage.get("canary"), dict):
                yield ("stages", index, "canary"), stage["canary"], ("interval", "timeout")


def _seconds(document: YamlDocument, path: Path, text: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h)\s*", text)
    if match is None:
        raise document.error(path, f"{shown(text)} is not a duration; write seconds, or such as 500ms, 30s, 5m, 1h")
    return float(match[1]) * _SECONDS[match[2]]


def _explained(document: YamlDocument, message: str) -> PipelineError:
    """Make a PipelineError with file, line and field of a msgspec message.

    Such a message is "Expected `int`, got `str` - at `$.stages[1].slots`".
    """
    what, _, where = message.partition(" - at ")
    path = _path(where)
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", what):
        return document.error((*path, unknown[1]), f"unknown field{_hint(unknown[1], path)}")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", what):
        file, line = document.place(path)
        return PipelineError("missing", file=file, line=line, field=field_name((*path, missing[1])))
    path = _entry_that_is_not_text(document, path) if where.endswith("[...]`") else path
    if what.startswith("Invalid enum value"):
        return document.error(path, _not_a_choice(document, path))
    hint = "; quote it" if what.startswith("Expected `str") else ""
    return document.error(path, what[:1].lower() + what[1:].replace("`", "") + hint)


def _path(where: str) -> Path:
    """Parse a path: ("stages", 1, "slots") for "`$.stages[1].slots`"."""
    parts = re.findall(r"\.(\w+)|\[(\d+)\]", where)
    return tuple(name or int(index) for name, index in parts)


def _hint(field: str, path: Path) -> str:
    known = suggestion(field, _fields_at(path))
    of_engine = "; what is for the engine goes under engine_args" if path[:1] == ("stages",) else ""
    return known or of_engine


def _fields_at(path: Path) -> tuple[str, ...]:
    if not path:
        return PipelineSpec.__struct_fields__
    return StageSpec.__struct_fields__ if path[0] == "stages" else EdgeSpec.__struct_fields__


def _entry_that_is_not_text(document: YamlDocument, path: Path) -> Path:
    """msgspec does not say which entry of a dict is wrong; those here that constrain their values want text."""
    entries = _value_at(document, path)
    return next(((*path, key) for key, value in entries.items() if not isinstance(value, str)), path)


def _not_a_choice(document: YamlDocument, path: Path) -> str:
    value = _value_at(document, path)
    field = next(str(part) for part in reversed(path) if isinstance(part, str))
    choices = _CHOICES[field]
    return f"{shown(value)} is not one of {', '.join(choices)}{suggestion(value, choices)}"


def _value_at(document: YamlDocument, path: Path) -> Any:
    value = document.values
    for part in path:
        value = value[part]
    return value
