"""Facts of a request from its server: headers, names in lower case, in the order in which they came; that its caller left."""

from __future__ import annotations

from typing import Final

from starlette.types import Scope

GONE: Final = "omnibus.gone"
"""Key of a scope under which our server leaves a future: its caller has gone away."""
_BY_NAME: Final = "omnibus.headers"
"""Key of a scope under which its headers are looked up: half a dozen of them are, of each request."""
PROCESS_HEADER: Final = "Omnibus-Process"
"""Header of `/live`: the process that answers, where several share a port."""


def sent_header(scope: Scope, name: str) -> str | None:
    """The first header of this name, which is in lower case; None when it was not sent."""
    sent: dict[bytes, bytes] | None = scope.get(_BY_NAME)
    if sent is None:
        sent = scope[_BY_NAME] = dict(reversed(scope["headers"]))
    value = sent.get(name.encode())
    return None if value is None else value.decode("latin-1")
