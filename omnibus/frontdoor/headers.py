"""Headers of a request as the server has read them: names in lower case, in the order in which they came."""

from __future__ import annotations

from starlette.types import Scope


def sent_header(scope: Scope, name: str) -> str | None:
    """The first header of this name, which is in lower case; None when it was not sent."""
    wanted = name.encode()
    return next((value.decode("latin-1") for known, value in scope["headers"] if known == wanted), None)
