"""Pipeline files that build on others: `base_config`, and `platforms` merged on a machine of their platform."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any

from omnibus.pipeline.files import pipeline_file, read_file, suggestion
from omnibus.pipeline.plain_values import Path, shown
from omnibus.pipeline.platforms import PLATFORMS, detect_platform
from omnibus.pipeline.yaml_document import Place, YamlDocument, parse_yaml

MOST_BASES = 16
BASE, OVERLAYS = "base_config", "platforms"
"""Keys of a file that this module resolves: a specification has neither."""
_LIST_KEYS: dict[str, Callable[[dict[str, Any]], object]] = {
    "stages": lambda stage: stage.get("stage_id"),
    "edges": lambda edge: (edge.get("source"), edge.get("target")),
}
"""Lists whose items are merged with the item of the same key; other lists are replaced."""

Places = dict[Path, Place]


def parse_merged(text: str, file: str, platform: str | None = None) -> YamlDocument:
    """Parse a text, and merge its bases below it and its overlay for the platform above it.

    `platform` None is the one of this machine. Mappings merge key by key, stages by `stage_id`, edges by source and target;
    anything else is replaced. Raises PipelineError naming file and line.
    """
    document = _with_bases(parse_yaml(text, file), (FilePath(file),))
    return _with_overlay(document, platform)


def merged(below: YamlDocument, above: YamlDocument) -> YamlDocument:
    """Merge two documents; a value of `above` wins. A place remembers the file it came from."""
    below, above = _keyed(below), _keyed(above)
    places = {**below.places, **above.places}
    return _listed(YamlDocument(file=above.file, values=_merge(below.values, above.values), places=places))


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
    prefix = (OVERLAYS, chosen)
    places = {path[2:]: place for path, place in document.places.items() if len(path) > 2 and path[:2] == prefix}
    overlay_file, _ = document.place(prefix)
    overlay = YamlDocument(file=overlay_file, values=overlays[chosen], places=places)
    return merged(_without(document, OVERLAYS), overlay)


def _without(document: YamlDocument, key: str) -> YamlDocument:
    values = {name: value for name, value in document.values.items() if name != key}
    return YamlDocument(file=document.file, values=values, places=document.places)


class _Keyed(dict[str, Any]):
    """A list of mappings in the form of a mapping, so that it merges like one; in the order of the list."""


def _merge(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or type(below) is not type(above):
        return above
    both = {key: _merge(below[key], above[key]) for key in below.keys() & above.keys()}
    return type(below)({**below, **above, **both})


def _keyed(document: YamlDocument) -> YamlDocument:
    """Turn each list of `_LIST_KEYS` into a _Keyed; a value that is no list of mappings stays for the conversion to refuse."""
    values, places = dict(document.values), document.places
    for field, key_of in _LIST_KEYS.items():
        items = values.get(field)
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            continue
        names = _unique([repr(key_of(item)) for item in items])
        values[field] = _Keyed(zip(names, items, strict=True))
        places = _renamed(places, field, dict(enumerate(names)))
    return YamlDocument(file=document.file, values=values, places=places)


def _listed(document: YamlDocument) -> YamlDocument:
    """Undo `_keyed`."""
    values, places = dict(document.values), document.places
    for field in _LIST_KEYS:
        items = values.get(field)
        if isinstance(items, _Keyed):
            values[field] = list(items.values())
            places = _renamed(places, field, {name: index for index, name in enumerate(items)})
    return YamlDocument(file=document.file, values=values, places=places)


def _unique(names: list[str]) -> list[str]:
    """A key that a file repeats stays apart, for the validation to refuse."""
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        numbered.append(f"{name} {seen[name]}")
        seen[name] += 1
    return numbered


def _renamed(places: Places, field: str, names: Mapping[Any, str | int]) -> Places:
    """Rename the items of a list in the places of a document."""
    renamed = {}
    for path, place in places.items():
        inside = len(path) > 1 and path[0] == field and path[1] in names
        renamed[(field, names[path[1]], *path[2:]) if inside else path] = place
    return renamed
