"""The time for which something is kept: what a request says, else what its route has, and no longer than its key allows. Pure."""

from __future__ import annotations

from starlette.types import Scope

from omnibus.errors import InvalidRequest

KEEP = "keep"
"""Key of a scope's state: the seconds for which the caller's key keeps anything, None without a bound."""


def lifetime(scope: Scope, usual: float, asked: float | None = None, *, param: str | None = None) -> float:
    """Seconds that something is kept: what was `asked` for, else the `usual` time as far as the key allows.

    Raises InvalidRequest naming `param` for more than the key allows.
    """
    most: float | None = scope["state"].get(KEEP)
    if asked is not None and most is not None and asked > most:
        raise InvalidRequest(f"this key keeps what it stores for {most:g} seconds at most", param=param)
    wanted = usual if asked is None else asked
    return wanted if most is None else min(wanted, most)
