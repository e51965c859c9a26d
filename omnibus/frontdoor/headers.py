"""Headers of a request, and what our server leaves in its scope beside them."""

from __future__ import annotations

from typing import Final

from starlette.types import Scope

from omnibus.observability.tracing import TRACE_HEADERS

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


def sent_trace(scope: Scope) -> dict[str, str]:
    """The trace context of a caller, which is passed on to every stage."""
    sent = {name: sent_header(scope, name) for name in TRACE_HEADERS}
    return {name: value for name, value in sent.items() if value is not None}
