"""A YAML document as plain values: dicts, lists and scalars, with the file and line of every place in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from omnibus.errors import PipelineError
from omnibus.pipeline.files import MOST_CHARACTERS
from omnibus.pipeline.plain_values import DEEPEST, Path, field_name, shown

MOST_VALUES = 20_000
"""Values of a document when its aliases are written out."""
FilePosition = tuple[str, int]
"""A file and a line of it, from 1."""
_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class YamlMapping(dict[str, Any]):
    """A mapping that knows the places of its keys."""

    def __init__(self, values: Mapping[str, Any], places: Mapping[Any, FilePosition]) -> None:
        super().__init__(values)
        self.places = dict(places)


class YamlList(list[Any]):
    """A list that knows the places of its items."""

    def __init__(self, values: Iterable[Any], places: Mapping[Any, FilePosition]) -> None:
        super().__init__(values)
        self.places = dict(places)


def places_of(values: Any) -> dict[Any, FilePosition]:
    """The places of the entries of a mapping or a list; empty for values that no file gave."""
    return values.places if isinstance(values, YamlMapping | YamlList) else {}


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """Plain values of one document, several files when documents were merged; what a file gave knows its places."""

    file: str
    values: Any

    def place(self, path: Path) -> FilePosition:
        """Find the file and line of a value; of one without a place of its own, the closest around it."""
        found, values = (self.file, 1), self.values
        for part in path:
            found = places_of(values).get(part, found)
            try:
                values = values[part]
            except (LookupError, TypeError):
                break
        return found

    def error(self, path: Path, message: str) -> PipelineError:
        """Make the error for a place of this document."""
        file, line = self.place(path)
        return PipelineError(message, file=file, line=line, field=field_name(path) or None)


def parse_yaml(text: str, file: str) -> YamlDocument:
    """Parse a single document; `file` is what errors name.

    Raises PipelineError for what is not YAML, holds several documents, repeats a key, nests too deep, is too long or expands to
    too much.
    """
    if len(text) > MOST_CHARACTERS:
        raise PipelineError(f"longer than {MOST_CHARACTERS} characters", file=file, line=1)
    try:
        return _parse(text, file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise PipelineError(f"not valid YAML: {error.problem or error.context}", file=file, line=line) from error
    except yaml.YAMLError as error:
        raise PipelineError(f"not valid YAML: {error}", file=file, line=1) from error
    except RecursionError as error:
        raise PipelineError("nested too deep", file=file, line=1) from error


def _parse(text: str, file: str) -> YamlDocument:
    loader = yaml.SafeLoader(text)
    root = loader.get_single_node()
    if root is None:
        raise PipelineError("the file is empty", file=file, line=1)
    return YamlDocument(file=file, values=_Builder(loader, file).value(root, ()))


class _Builder:
    """Turns nodes into values, keeping the line of each."""

    def __init__(self, loader: yaml.SafeLoader, file: str) -> None:
        self._loader = loader
        self._file = file
        self._values = 0

    def value(self, node: yaml.Node, path: Path) -> Any:
        self._values += 1
        if self._values > MOST_VALUES:
            raise self._error(node, path[:3], f"more than {MOST_VALUES} values, with those that aliases repeat")
        if len(path) > DEEPEST:  # an alias may contain itself
            raise self._error(node, path[:3], f"nested deeper than {DEEPEST} levels")
        if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN_TAGS:
            raise self._error(node, path, f"not valid YAML here: the tag {node.tag!r}")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            items = (self.value(child, (*path, index)) for index, child in enumerate(node.value))
            return YamlList(items, {index: self._place(child) for index, child in enumerate(node.value)})
        try:
            return self._loader.construct_object(node)
        except ValueError as error:  # a date such as 2024-13-01
            raise self._error(node, path, f"not valid YAML: {error}") from error

    def _mapping(self, node: yaml.MappingNode, path: Path) -> YamlMapping:
        values = YamlMapping({}, {})
        for key_node, value_node in node.value:
            key = self.value(key_node, path)
            if not isinstance(key, str):
                raise self._error(key_node, path, f"the key {shown(key)} must be text; quote it")
            if key in values:
                _, first = values.places[key]
                raise self._error(key_node, (*path, key), f"repeated; first given on line {first}")
            values.places[key] = self._place(key_node)
            values[key] = self.value(value_node, (*path, key))
        return values

    def _place(self, node: yaml.Node) -> FilePosition:
        return self._file, int(node.start_mark.line) + 1

    def _error(self, node: yaml.Node, path: Path, message: str) -> PipelineError:
        file, line = self._place(node)
        return PipelineError(message, file=file, line=line, field=field_name(path) or None)
