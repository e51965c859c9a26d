"""Names that users and pipelines bring: one token of a subject each, so that none can mean another subject."""

from __future__ import annotations

import re

from omnibus.errors import InvalidName

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def is_name(text: str) -> bool:
    """Check that a text is one token of [A-Za-z0-9_-]{1,64}; a producer may put other tokens into a subject."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str, what: str) -> str:
    """Return the name when it is one token of [A-Za-z0-9_-]{1,64}; raises InvalidName with `what` it names."""
    if not is_name(name):
        raise InvalidName(f"{what} must match [A-Za-z0-9_-]{{1,64}}, got {name[:80]!r}", param=what)
    return name
