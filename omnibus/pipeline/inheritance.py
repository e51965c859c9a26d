"""Pipeline files that build on others: `base_config`, and `platforms` merged on a machine of their platform."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

from omnibus.pipeline.files import pipeline_file, read_file, suggestion
from omnibus.pipeline.plain_values import shown
from omnibus.pipeline.platforms import PLATFORMS, detect_platform
from omnibus.pipeline.yaml_document import FilePosition, YamlDocument, YamlList, YamlMapping, parse_yaml, places_of

MOST_BASES = 16
BASE, OVERLAYS = "base_config", "platforms"
"""Keys of a file that this module resolves: a specification has neither."""
_LIST_KEYS: dict[str, Callable[[dict[str, Any]], object]] = {
    "stages": lambda stage: stage.get("stage_id"),
    "edges": lambda edge: (edge.get("source"), edge.get("target")),
}
"""Lists whose items are merged with the item of the same key; other lists are replaced."""


def parse_merged(text: str, file: str, platform: str | None = None) -> YamlDocument:
    """Parse a text, and merge its bases below it and its overlay for the platform above it.

    `platform` None is the one of this machine. Mappings merge key by key, stages by `stage_id`, edges by source and target;
    anything else is replaced. Raises PipelineError naming file and line.
    """
    document = _with_bases(parse_yaml(text, file), (FilePath(file),))
    return _with_overlay(document, platform)


def merged(below: YamlDocument, above: YamlDocument) -> YamlDocument:
    """Merge two documents; a value of `above` wins. A place remembers the file it came from."""
    values = _merge(below.values, above.values)
    for field, key_of in _LIST_KEYS.items():
        if field in below.values and field in above.values:
            values[field] = _merge_lists(below.values[field], above.values[field], key_of)
    return YamlDocument(above.file, values)


def _with_bases(document: YamlDocument, chain: tuple[FilePath, ...]) -> YamlDocument:
    """`chain` holds the files that led here, this one last."""
    if not isinstance(document.values, dict):
        raise document.error((), "a pipeline file is a mapping with name and stages")
    if BASE not in document.values:
        return document
    given = document.values[BASE]
    if not isinstance(given, str) or not given:
        raise document.error((BASE,), f"must be a file or the name of a shipped pipeline, not {shown(given)}")
    if len(chain) > MOST_BASES:
        raise document.error((BASE,), f"more than {MOST_BASES} files inherit from each other")
    path = pipeline_file(given, beside=chain[-1].parent)
    if path.resolve() in [file.resolve() for file in chain]:
        way = " → ".join(file.name for file in (*chain, path))
        raise document.error((BASE,), f"the files inherit from each other: {way}")
    if not path.is_file():
        raise document.error((BASE,), f"there is no file {path}")
    base = _with_bases(parse_yaml(read_file(path), str(path)), (*chain, path))
    return merged(base, _without(document, BASE))


def _with_overlay(document: YamlDocument, platform: str | None) -> YamlDocument:
    overlays = document.values.get(OVERLAYS)
    if overlays is None:
        return _without(document, OVERLAYS)
    if not isinstance(overlays, dict):
        raise document.error((OVERLAYS,), f"must be a mapping with some of {', '.join(PLATFORMS)}")
    for name, overlay in overlays.items():
        if name not in PLATFORMS:
            hint = suggestion(name, PLATFORMS)
            raise document.error((OVERLAYS, name), f"{name!r} is not one of {', '.join(PLATFORMS)}{hint}")
        if not isinstance(overlay, dict):
            raise document.error((OVERLAYS, name), "must be a mapping, such as one with stages")
    chosen = platform or detect_platform()
    if chosen not in overlays:
        return _without(document, OVERLAYS)
    overlay_file, _ = document.place((OVERLAYS, chosen))
    return merged(_without(document, OVERLAYS), YamlDocument(overlay_file, overlays[chosen]))


def _without(document: YamlDocument, key: str) -> YamlDocument:
    values = {name: value for name, value in document.values.items() if name != key}
    return YamlDocument(document.file, YamlMapping(values, places_of(document.values)))


def _merge(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    both = {key: _merge(below[key], above[key]) for key in below.keys() & above.keys()}
    return YamlMapping({**below, **above, **both}, {**places_of(below), **places_of(above)})


def _merge_lists(below: Any, above: Any, key_of: Callable[[dict[str, Any]], object]) -> Any:
    """Items of the same key merge; a value that is no list of mappings stays for the conversion to refuse."""
    if not all(isinstance(items, list) and all(isinstance(item, dict) for item in items) for items in (below, above)):
        return above
    both = _by_key(below, key_of)
    for name, (item, place) in _by_key(above, key_of).items():
        both[name] = (_merge(both[name][0], item) if name in both else item, place)
    places = {index: place for index, (_, place) in enumerate(both.values()) if place is not None}
    return YamlList((item for item, _ in both.values()), places)


def _by_key(
    items: list[Any], key_of: Callable[[dict[str, Any]], object]
) -> dict[tuple[str, int], tuple[Any, FilePosition | None]]:
    """The items and their places by their keys; one that repeats a key stays apart, for the validation to refuse."""
    seen: Counter[str] = Counter()
    found = {}
    for index, item in enumerate(items):
        name = repr(key_of(item))
        found[name, seen[name]] = item, places_of(items).get(index)
        seen[name] += 1
    return found
