"""Facts of a request from its server: headers, names in lower case, in the order in which they came; that its caller left."""

from __future__ import annotations

from typing import Final

from starlette.types import Scope

GONE: Final = "omnibus.gone"
"""Key of a scope under which our server leaves a future: its caller has gone away."""
PROCESS_HEADER: Final = "Omnibus-Process"
"""Header of `/live`: the process that answers, where several share a port."""


def sent_header(scope: Scope, name: str) -> str | None:
    """The first header of this name, which is in lower case; None when it was not sent."""
    wanted = name.encode()
    return next((value.decode("latin-1") for known, value in scope["headers"] if known == wanted), None)
