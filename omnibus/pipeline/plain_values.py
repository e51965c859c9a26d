"""Places and values of a specification: what is wrong where, and which values can be deployed at all. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

Path = tuple[str | int, ...]
"""A place in a specification, such as ("stages", 1, "slots")."""

DEEPEST = 32
"""Levels of a specification."""
_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a specification, and its place."""

    path: Path
    message: str


def field_name(path: Path) -> str:
    """`stages[1].slots` for ("stages", 1, "slots")."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def shown(value: object) -> str:
    """A value as error messages quote it: never more than a line of it."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def value_problems(path: Path, value: object) -> Iterator[Problem]:
    """Everything in a value that MessagePack cannot hold, or that nobody could read again."""
    if len(path) > DEEPEST:
        yield Problem(path[:3], f"nested deeper than {DEEPEST} levels")
        return
    message = _problem(value)
    if message is not None:
        yield Problem(path, message)
    for key, inner in _inside(value):
        yield from value_problems((*path, key), inner)


def _inside(value: object) -> Iterator[tuple[str | int, object]]:
    if isinstance(value, msgspec.Struct):
        yield from ((field, getattr(value, field)) for field in value.__struct_fields__)
    elif isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)


def _problem(value: object) -> str | None:
    """The message about a value itself, if it is wrong."""
    if isinstance(value, str):
        return None if _is_unicode(value) else f"{shown(value)} is not Unicode: it holds half a surrogate pair"
    if isinstance(value, int):
        return None if -(1 << 63) <= value < 1 << 64 else "must be a whole number of at most 64 bits"
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str) or not _is_unicode(key)), None)
        return None if wrong is None else f"the key {shown(wrong)} must be text; quote it"
    if value is None or isinstance(value, float | list | tuple | msgspec.Struct):
        return None
    return f"must be text, a number, a list or a mapping, not a {type(value).__name__}; quote it"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
